"""Whatever ggml or memory refuses: the same answer without the device, or one error. Never the end.

Each case runs in a process of its own, whose ggml fails on demand (tests/native/failing_ggml.cpp).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from dotscli.hot.backend import library
from tests.dots1_gguf import Type, log, write_model
from tests.hot_devices import ROOT, compiler

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not compiler(), reason="glibc and a compiler"
)
SHAPE = {"n_layers": 3, "n_experts": 16, "n_experts_used": 4}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("failures") / "model.gguf", Type.Q8_0, **SHAPE)


def build(source: str, target: Path, *more: str) -> Path:
    command = [str(compiler()), "-std=c++17", "-O1", "-shared", "-fPIC"]
    source = str(ROOT / "tests/native" / source)
    subprocess.run([*command, source, *more, "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def ggml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libllama with functions of ggml's that fail on demand."""
    target = tmp_path_factory.mktemp("ggml") / "libfailing.so"
    llama = str(library.llama_path())
    more = [f"-I{ROOT / 'dotscli/native'}", "-Wl,--no-as-needed", llama, "-ldl"]
    return build("failing_ggml.cpp", target, *more, f"-Wl,-rpath,{Path(llama).parent}")


def run(code: str, *arguments: object, **env: str) -> list[list[object]]:
    """What a process of its own prints, a JSON array a line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


WITH_FAILING_GGML = """
import contextlib, ctypes, json, sys
from pathlib import Path
import numpy as np
from dotscli.errors import DotsError
from dotscli.hot.backend import library, plugin
from tests.dots1_gguf import Run, batches, log

path, sizes = Path(sys.argv[2]), (1, 2, 33, 1)
llama, ggml = ctypes.CDLL(str(library.llama_path())), ctypes.CDLL(sys.argv[1])
ggml.use_libllama(ctypes.c_void_p(llama._handle))
library.llama_path = lambda: Path(sys.argv[1])
"""

WHILE_COMPUTING = """
def attempt(name, after):
    hot = plugin.backend().open("CPU")
    hot.set_streaming(streaming)
    with Run(path, hot) as run:
        ggml.fail_from(name, after)
        for layer in hot.layers():
            with contextlib.suppress(DotsError):
                hot.reserve(layer.layer, 8)
                hot.set_residents(layer.layer, range(8))
        for batch, logits in zip(batches(sizes), expected):
            np.testing.assert_array_equal(run.decode(batch), logits)
        n_calls = ggml.fail_from(None, 0)
        print(json.dumps([after, hot.messages()]))
        return n_calls

name, streaming = sys.argv[3].encode(), int(sys.argv[4])
with log():
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(sizes)]
    ggml.pad_graphs(int(sys.argv[5]))
    n_calls, after = attempt(name, 1 << 30), 0
    assert n_calls > 0
    while after < n_calls:
        attempt(name, after)
        after += 1 + after // 3
"""


@needs_compiler
@pytest.mark.parametrize("streaming", [0, 2], ids=["divided", "streamed"])
@pytest.mark.parametrize(
    "name",
    ["ggml_init", "ggml_backend_dev_init", "ggml_backend_buft_alloc_buffer",
     "ggml_backend_tensor_alloc", "ggml_backend_view_init"],
)  # fmt: skip
def test_the_same_answer_whatever_ggml_refuses(
    name: str, streaming: int, ggml: Path, model: Path
) -> None:
    (_, undisturbed), *lines = run(
        WITH_FAILING_GGML + WHILE_COMPUTING, ggml, model, name, streaming, 0
    )
    assert undisturbed == []
    assert any(messages for _, messages in lines), "nothing was said"


@needs_compiler
def test_a_graph_that_is_taken_apart_without_memory_for_the_parts(ggml: Path, model: Path) -> None:
    (_, undisturbed), *lines = run(
        WITH_FAILING_GGML + WHILE_COMPUTING, ggml, model, "ggml_init", 0, 1
    )
    assert undisturbed == []
    said = "layer 1 stays on the CPU: no memory left to build graphs in"
    assert any(said in messages for _, messages in lines)


WHILE_LOADING = """
with log():
    for after in range(4):
        hot = plugin.backend().open("CPU")
        ggml.fail_from(sys.argv[3].encode(), after)
        try:
            with Run(path, hot) as run:
                print(json.dumps(["loaded", len(run.decode([1]))]))
        except AssertionError as error:
            hot.close()
            print(json.dumps(["refused", len(hot.layers())]))
        ggml.fail_from(None, 0)
"""


@needs_compiler
@pytest.mark.parametrize("name", ["ggml_backend_buffer_init", "ggml_backend_dev_init"])
def test_a_load_for_which_ggml_has_no_memory(name: str, ggml: Path, model: Path) -> None:
    lines = run(WITH_FAILING_GGML + WHILE_LOADING, ggml, model, name)
    assert lines[0] == ["refused", 0]
    assert ["loaded", 1] in lines


WITHOUT_MEMORY = """
import ctypes, json, sys
from pathlib import Path
import numpy as np
from dotscli.errors import DotsError
from dotscli.hot.backend import library, plugin
from tests.dots1_gguf import Run, batches, log

memory, path, sizes = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), (1, 2, 33)
with log():
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(sizes)]
    hot = plugin.backend().open("CPU")
    hot.set_streaming(2)
    maps = [m.split()[0] for m in open("/proc/self/maps") if str(library.library_path()) in m]
    ends = [int(end, 16) for m in maps for end in m.split("-")]
    memory.count_allocations_of(ctypes.c_void_p(min(ends)), ctypes.c_void_p(max(ends)))
    with Run(path, hot) as first:
        memory.fail_new_after(0)
        try:
            hot.reserve(1, 8)
        except DotsError as error:
            print(json.dumps(["reserve", error.message]))
        memory.fail_new_after(-1)
        for layer in hot.layers():
            hot.reserve(layer.layer, 8)
            hot.set_residents(layer.layer, range(8))
        for after in range(0, 120, 3):
            with Run(path, beside=first) as run:
                for batch, logits in zip(batches(sizes), expected):
                    memory.fail_new_after(after)
                    try:
                        np.testing.assert_array_equal(run.decode(batch), logits)
                    except AssertionError as error:
                        assert "llama_decode" in str(error) or not str(error), error
                        print(json.dumps(["decode", after]))
                        break
                    finally:
                        memory.fail_new_after(-1)
                run.clear()
                hot.set_streaming(2)
                for batch, logits in zip(batches(sizes), expected):
                    np.testing.assert_array_equal(run.decode(batch), logits)
"""


@needs_compiler
def test_memory_that_runs_out_is_an_error_and_the_next_answer_is_right(
    model: Path, tmp_path: Path
) -> None:
    memory = build("count_allocations.cpp", tmp_path / "libcount.so")
    lines = run(WITHOUT_MEMORY, memory, model, LD_PRELOAD=str(memory))
    assert lines[0] == ["reserve", "hot experts, layer 1: out of memory"]
    assert ["decode", 0] in lines
