"""Loading a model: what it says, what it warns of, what it refuses."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions, devices, idle_backends, versions
from dotscli.engine.lib import submodule
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import quantize_checkpoint
from tests import gguf_maker
from tests.engine_kit import GREEDY, ids, load, run
from tests.transcript import environment


@pytest.mark.parametrize("preset", ["f32", "bf16", "q8_0", "q4", "q4_k_m", "iq4_xs", "mxfp4_moe"])
def test_what_dots_quantize_writes_is_loaded_and_answers(
    tiny_checkpoint: Path, tmp_path: Path, preset: str
) -> None:
    path = tmp_path / "m.gguf"
    list(quantize_checkpoint(tiny_checkpoint, path, preset))
    with load(path, n_ctx=256) as engine:
        assert engine.eos_token == "<|endofresponse|>"
        assert len(engine.tokenize("<|response|>", parse_special=True)) == 1
        assert ids(run(engine))


def test_what_llama_cpp_refuses_comes_with_its_reason(tmp_path: Path) -> None:
    made = gguf_maker.dots1().set("general.file_type", "string", "best")
    with pytest.raises(DotsError, match=r"m\.gguf: llama\.cpp can\'t load") as caught:
        load(made.write(tmp_path / "m.gguf"))
    assert "general.file_type has wrong type" in caught.value.hint


def test_a_split_model_answers_like_the_whole_one(engine: Engine, tmp_path: Path) -> None:
    with load(gguf_maker.split(tmp_path)[0], n_ctx=256) as parts:
        assert ids(run(parts)) == ids(run(engine))


def test_what_a_model_says_about_itself(engine: Engine, model: Path) -> None:
    assert engine.path == model
    assert (engine.n_vocab, engine.n_ctx, engine.n_ctx_train) == (320, 512, 2048)
    assert engine.metadata["general.architecture"] == "dots1"
    assert engine.chat_template == "{{ messages[0].content }}"
    assert engine.bos_token == ""  # the file names none, whatever llama.cpp makes of that
    assert engine.load_s > 0


def test_a_context_nobody_asked_for_is_as_long_as_the_training(model: Path) -> None:
    with load(model) as engine:
        assert engine.n_ctx == 2048


def test_a_context_longer_than_the_training_is_mentioned(model: Path) -> None:
    said: list[str] = []
    options = EngineOptions(n_threads=1, n_ctx=3000)
    with Engine.load(model, options, on_log=said.append) as engine:
        assert engine.n_ctx == 3000
    assert any("3000" in line and "2048" in line for line in said)


def test_the_log_of_llama_cpp_comes_only_when_asked_for(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quiet: list[str] = []
    with Engine.load(model, EngineOptions(n_threads=1), on_log=quiet.append):
        pass
    verbose: list[str] = []
    options = EngineOptions(n_threads=1, verbose=True)
    with Engine.load(model, options, on_log=verbose.append):
        pass
    assert quiet == []
    assert any("dots1" in line for line in verbose)
    assert len(verbose) < 200  # the lines about every single tensor are left out
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_stops_the_log_only(model: Path) -> None:
    seen: list[str] = []

    def closed_pipe(line: str) -> None:
        seen.append(line)
        if len(seen) > 3:
            raise BrokenPipeError

    options = EngineOptions(n_threads=1, n_ctx=256, verbose=True)
    with Engine.load(model, options, on_log=closed_pipe) as engine:
        assert ids(run(engine))
    assert len(seen) == 4


def test_progress_goes_from_nothing_to_all(model: Path) -> None:
    seen: list[tuple[float, float]] = []
    options = EngineOptions(n_threads=1)
    Engine.load(model, options, on_progress=lambda *now: seen.append(now)).close()
    weights = sum(tensor.nbytes for tensor in read_gguf(model).tensors)
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {weights}
    assert seen[-1] == (weights, weights)


def test_a_model_that_is_closed_says_so(model: Path) -> None:
    engine = load(model, n_ctx=256)
    answer = engine.generate([1], GREEDY)
    next(answer)
    engine.close()
    engine.close()
    assert list(answer) == []
    for use in (
        lambda: engine.generate([1], GREEDY),
        lambda: engine.logits([1]),
        lambda: engine.tokenize("a", parse_special=False),
        lambda: engine.detokenize([1]),
        engine.forget,
    ):
        with pytest.raises(DotsError, match="closed"):
            use()


def test_weights_that_are_no_numbers_are_noticed(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    shape, kind, data = made.tensors["blk.2.ffn_up_exps.weight"]
    made.tensors["blk.2.ffn_up_exps.weight"] = (shape, kind, b"\xff" * len(data))
    with (
        load(made.write(tmp_path / "nan.gguf"), n_ctx=256) as engine,
        pytest.raises(DotsError, match="NaN"),
    ):
        run(engine)


def test_a_token_whose_embedding_is_damaged_is_noticed_while_decoding(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    shape, kind, data = made.tensors["token_embd.weight"]
    settings = (GREEDY, Sampling(temp=0.0, grammar="root ::= [a-z]*"))
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as engine:
        chosen = [ids(run(engine, sampling=sampling))[0] for sampling in settings]
    rows = np.frombuffer(data, "<f4").reshape(shape[::-1]).copy()
    rows[chosen] = np.nan
    made.tensors["token_embd.weight"] = (shape, kind, rows.tobytes())
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as engine:
        for sampling in settings:
            with pytest.raises(DotsError, match="NaN"):
                run(engine, sampling=sampling)


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": -1},
        {"n_ctx": 2**31},
        {"n_batch": -1},
        {"n_ubatch": 1 << 20},
        {"n_threads": 10_000},
        {"n_gpu_layers": -5},
        {"cache_type_k": "q3_k"},
        {"flash_attn": "maybe"},
        {"cache_type_v": "q8_0", "flash_attn": "off"},
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, object]) -> None:
    with pytest.raises(DotsError) as caught:
        EngineOptions(**options)  # type: ignore[arg-type]  # the point of the test
    assert caught.value.exit_status == 2


def test_an_rpc_worker_that_is_not_there_is_named(model: Path) -> None:
    for endpoint in ("127.0.0.1:1", "nonsense", "host:99999"):
        with pytest.raises(DotsError, match=endpoint):
            load(model, rpc=(endpoint,))


def test_devices_and_versions_are_those_of_the_library_that_runs() -> None:
    found = devices()
    assert [device.type for device in found].count("CPU") == 1
    assert all(device.total_bytes >= device.free_bytes > 0 for device in found)
    assert set(versions()) == {"llama-cpp-python", "llama.cpp", "ggml"}
    assert all(versions().values())


@pytest.mark.parametrize(
    ("library", "what", "hint"),
    [
        ("libcuda.so.1", "comes with NVIDIA's driver", "install the driver"),
        ("libcublas.so.13", "part of CUDA", "LD_LIBRARY_PATH"),
        ("libcudart.so.13", "part of CUDA", "LD_LIBRARY_PATH"),
        ("libvulkan.so.1", "the Vulkan loader", "install it"),
        ("libother.so.1", "libother.so.1: cannot open", "dots doctor"),
    ],
)
def test_a_library_that_a_build_for_gpus_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, library: str, what: str, hint: str
) -> None:
    def fail(_name: str) -> None:
        reason = f"{library}: cannot open shared object file: No such file or directory"
        raise RuntimeError(f"Failed to load shared library '/llama_cpp/lib/libllama.so': {reason}")

    monkeypatch.setattr("dotscli.engine.lib.importlib.import_module", fail)
    with pytest.raises(DotsError, match=what) as caught:
        submodule("llama_cpp")
    assert library in caught.value.message
    assert hint in caught.value.hint


def test_a_build_for_gpus_that_finds_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle_backends() == []
    known = [(b"CUDA", 0), (b"Vulkan", 1), (b"RPC", 0), (b"CPU", 1)]  # RPC waits for --rpc
    functions = {
        "ggml_backend_reg_count": lambda: len(known),
        "ggml_backend_reg_get": lambda i: i,
        "ggml_backend_reg_name": lambda i: known[i][0],
        "ggml_backend_reg_dev_count": lambda i: known[i][1],
    }
    module = importlib.import_module(
        "dotscli.engine.devices"
    )  # the package has a function so named
    monkeypatch.setattr(module, "ggml", lambda name, *_types: functions[name])
    [sentence] = idle_backends()
    assert "built for CUDA" in sentence


def test_ctrl_c_while_llama_cpp_logs_is_not_lost(model: Path) -> None:
    """An exception in a callback of C can only be printed: the signal waits for the call's end."""
    heard: list[str] = []

    def press(line: str) -> None:
        if "llama_context" in line and not heard:
            heard.append(line)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Engine.load(model, EngineOptions(n_ctx=512, n_threads=1, verbose=True), on_log=press)
    assert heard


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_threads_wait_briefly_unless_somebody_has_said_how(
    given: dict[str, str], found: str
) -> None:
    code = (
        "import os; from dotscli.engine.lib import llama; llama(); "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    env = {k: v for k, v in environment().items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | given, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{found}\n"
