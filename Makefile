# `make` lists what there is. Every target works in the same .venv and is quick when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# GCC 12 compiles llama.cpp's AMX code wrongly: on Xeons that have AMX the process dies in prefill. All of
# that code depends on this macro; where the compiler doesn't define it, the flag changes nothing.
NO_AMX := -U__AMX_INT8__
# pip's wheel cache doesn't look at CMAKE_ARGS: every target must build llama-cpp-python the same way.
export CMAKE_ARGS ?= -DGGML_RPC=on -DCMAKE_C_FLAGS=$(NO_AMX) -DCMAKE_CXX_FLAGS=$(NO_AMX)

.PHONY: help demo test fuzz lint docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# Two stamps, so that `make test` adds the test tools to what `make demo` has installed.
$(VENV)/.installed: pyproject.toml $(shell find dotscli/native -type f) | $(BIN)/python
	@echo "installing (the first time builds llama.cpp: 3 to 10 minutes)" >&2
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.installed  ## quantize the nano model to 4 bits and ask it a question
	$(BIN)/dots quantize models/nano -o build/nano-q4.gguf --force
	$(BIN)/dots prompt -m build/nano-q4.gguf "What is dots?"

test: $(VENV)/.installed-test  ## set up and run the whole test suite
	$(BIN)/python -m pytest

MINUTES ?= 10
fuzz: $(VENV)/.installed-test  ## attack everything that is read, for MINUTES=10; SEED=n repeats a run
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.installed-test  ## ruff, mypy and the layer contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-test  ## write the generated parts of README.md and docs/ anew
	$(BIN)/python docs/generate.py

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build
