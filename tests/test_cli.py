"""The command as a whole: quick to answer, quiet, and clear about what went wrong."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from dotscli import catalog
from dotscli.engine import devices
from dotscli.errors import DotsError
from dotscli.hot.backend.plugin import unavailable
from dotscli.options.sizes import parse_size
from tests import gguf_maker, tiny
from tests.transcript import command, dots, dots_process, environment

HEAVY = ("llama_cpp", "numpy", "gguf", "rich", "jinja2", "prompt_toolkit", "psutil", "platformdirs")


def test_help_of_no_command_loads_anything_heavy() -> None:
    program = (
        "import sys\n"
        "import typer\n"
        "from dotscli.cli.app import app, run\n"
        "from dotscli.terminal.terminal import Terminal\n"
        "names = [[name] for name in typer.main.get_command(app).commands]\n"
        "done = [run([*name, '--help'], Terminal.system()) for name in ([], *names)]\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('loaded:', heavy, len(done), sum(done))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.fullmatch(r"loaded: \[\] (\d+) 0", done.stdout.splitlines()[-1])
    assert said is not None, done.stdout.splitlines()[-1]
    assert int(said[1]) > 10


def test_help_and_completion_answer_at_once() -> None:
    def seconds(*words: str, **changes: str) -> float:
        before = os.times()
        assert dots_process(*words, **changes).returncode == 0
        after = os.times()
        user = after.children_user - before.children_user
        return user + after.children_system - before.children_system

    asked = {"_DOTS_COMPLETE": "complete_bash", "COMP_WORDS": "dots pro", "COMP_CWORD": "1"}
    assert min(seconds("--help") for _ in range(5)) < 0.35
    assert min(seconds(**asked) for _ in range(5)) < 0.15


def test_completion_knows_commands_types_and_models(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "other.txt").touch()

    def complete(line: str) -> list[str]:
        asked = {
            "_DOTS_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        }
        return dots_process(**asked).stdout.decode().split()

    assert "prompt" in complete("dots pro")
    assert complete("dots quantize --type q4_k") == ["q4_k_s", "q4_k_m"]
    assert complete(f"dots chat -m {tmp_path}/") == [f"{tmp_path}/model.gguf"]


def test_version() -> None:
    for flag in ("--version", "-V"):
        assert dots_process(flag).stdout.decode() == f"dots {version('dotscli')}\n"


def test_without_a_command_there_is_help_on_stderr() -> None:
    done = dots_process()
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Commands:" in done.stderr


def test_an_unknown_command_is_wrong_usage() -> None:
    done = dots("prompr", "hi")
    assert done.exit_status == 2
    assert done.stderr.startswith("error: No such command 'prompr'")


def test_a_traceback_is_shown_only_on_request() -> None:
    words = ("prompt", "hi", "-m", "no-such-model")
    assert b"Traceback" not in dots_process(*words).stderr
    debug = dots_process(*words, DOTS_DEBUG="1")
    assert debug.returncode == 1
    assert b"Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4194304", 4 << 20), ("4096B", 4096), ("0", 0), ("512M", 512 << 20), ("24G", 24 << 30),
     ("48GiB", 48 << 30),
     ("1.5k", 1536), ("2 TiB", 2 << 40), ("100B", 100)],
)  # fmt: skip
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e9", "4 GX", "four"])
def test_what_is_no_size_is_wrong_usage(text: str, tiny_checkpoint: Path) -> None:
    done = dots("quantize", tiny_checkpoint, "--max-memory", text)
    assert done.exit_status == 2
    assert "is not a size" in done.stderr


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("plan", ".", "--vram", "24"), "--vram 24G"),
        (("plan", ".", "--ram", "4096"), "--ram 4096M"),
        (("quantize", ".", "--size", "70"), "--size 70G"),
        (("quantize", ".", "--max-memory", "2.5"), "--max-memory 2.5G"),
        (("prompt", "hi", "--hot", "8"), "--hot 8g"),
    ],
)
def test_a_bare_number_is_no_size(words: tuple[str, ...], suggestion: str) -> None:
    done = dots(*words)
    assert done.exit_status == 2
    assert "has no unit" in done.stderr
    assert done.stderr.splitlines()[-1].lower() == f"hint: {suggestion}".lower()


def test_quantize_prints_the_path_and_nothing_else(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = dots_process("quantize", tiny_checkpoint, "-o", out)
    assert done.returncode == 0
    assert done.stdout.decode() == f"{out}\n"
    assert b"\r" not in done.stderr
    assert b"bits per weight" in done.stderr
    assert b"dots prompt -m" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    quiet = dots_process("quantize", tiny_checkpoint, "-o", tmp_path / "2.gguf", "-q")
    assert quiet.stderr == b""


def test_quantize_names_the_file_after_checkpoint_and_type(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command("quantize", tiny_checkpoint, "--type", "Q8_0", "-q"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"{tiny_checkpoint.name}-q8_0.gguf\n", done.stderr
    assert (tmp_path / done.stdout.strip()).is_file()


def test_quantize_as_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    value = dots("quantize", tiny_checkpoint, "-o", out, "--json").json
    assert value["path"] == str(out)
    assert value["bytes"] == out.stat().st_size
    assert sum(tensor["bytes"] for tensor in value["tensors"]) < value["bytes"]


def test_a_dry_run_writes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = dots("quantize", tiny_checkpoint, "-o", out, "--dry-run", "--json").json
    assert set(plan) == {"total_bytes", "bpw", "tensors"}
    assert set(plan["tensors"][0]) == {"name", "type", "shape", "bytes"}
    assert plan["total_bytes"] == sum(tensor["bytes"] for tensor in plan["tensors"])
    table = dots("quantize", tiny_checkpoint, "--dry-run").stdout
    assert "experts gate, up" in table
    assert f"{plan['bpw']:.2f} bits per weight" in table
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    done = dots("quantize", tiny_checkpoint, "-o", out)
    assert done.exit_status == 1
    assert "--force" in done.stderr
    assert out.read_text() == "precious"
    assert dots("quantize", tiny_checkpoint, "-o", out, "--force").exit_status == 0


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "checkpoint")
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    shard = next(checkpoint.glob("*.safetensors"))
    for out in (shard, checkpoint / "config.json", checkpoint):
        done = dots("quantize", checkpoint, "-o", out, "--force")
        assert done.exit_status == 1
        assert done.stderr.startswith("error: ")
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_full_disk_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("quantize", tiny_checkpoint, "-o", tmp_path / "out.gguf", "--type", "f32"),
        env=environment(), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(("error: ", "hint: "))
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_quantize_says_what_is_kept(number: int, status: int, tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "checkpoint", n_layers=12, hidden=512)
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        command("quantize", checkpoint, "-o", folder / "out.gguf", "--type", "iq4_xs"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    kept = sorted(path.name for path in folder.iterdir())
    assert kept in ([], ["out.gguf.part", "out.gguf.part.journal"])
    assert ("out.gguf.part: run the same command to resume" in err) == bool(kept)


def test_doctor_as_json() -> None:
    value = dots("doctor", "--json").json
    assert {"versions", "devices", "hot_backend", "rpc"} <= set(value)
    assert value["versions"]["dots"] == version("dotscli")
    assert {"name", "type", "free_bytes", "total_bytes"} <= set(value["devices"][-1])
    assert value["hot_backend"]["available"] == (not unavailable())
    assert value["hot_backend"]["reason"] == unavailable()
    # now it is registered, and still no device to choose
    assert all("hot experts" not in device.description for device in devices())
    assert isinstance(value["rpc"], bool)


def test_doctor_as_a_table() -> None:
    done = dots("doctor")
    assert done.exit_status == 0
    for text in ("llama.cpp", "CPU", "hot experts  ", "RPC workers"):
        assert text in done.stdout
    assert "warning: " not in done.stdout


def test_doctor_says_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise DotsError("llama-cpp-python is not installed", "pip install it")

    monkeypatch.setattr("dotscli.engine.versions", missing)
    done = dots("doctor")
    assert done.exit_status == 1
    assert done.stderr.startswith("error: llama-cpp-python is not installed")
    assert "main memory" in done.stdout
    value = dots("doctor", "--json").json
    assert value["problems"] == ["llama-cpp-python is not installed (pip install it)"]


def test_inspect_an_importance_matrix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.imatrix.gguf"
    writer = gguf.GGUFWriter(path, "dots1")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    counts = np.arange(8, dtype=np.float32).reshape(8, 1)
    writer.add_tensor("blk.1.ffn_down_exps.weight.in_sum2", np.ones((8, 160), np.float32))
    writer.add_tensor("blk.1.ffn_down_exps.weight.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = dots("inspect", path).stdout
    assert "importance matrix" in text
    assert "calibration.txt" in text
    facts = dots("inspect", path, "--json").json["model"]
    assert (facts["chunks"], facts["experts"], facts["experts_unseen"]) == (7, 8, 1)
    assert facts["tokens_per_expert_most"] == 7


def test_inspect_a_checkpoint(tiny_checkpoint: Path) -> None:
    text = dots("inspect", tiny_checkpoint).stdout
    for part in (
        "dots.llm1 checkpoint",
        "n_routed_experts",
        "<|endofresponse|>",
        "BF16",
        "As q4",
    ):
        assert part in text
    value = dots("inspect", tiny_checkpoint, "--json").json
    assert value["model"]["n_experts"] == 8
    assert value["shards"] == 2
    sizes = [path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors")]
    assert 0.9 * sum(sizes) < sum(group["bytes"] for group in value["groups"]) < sum(sizes)


def test_inspect_a_config_alone() -> None:
    text = dots("inspect", Path(__file__).parent / "data" / "dots.llm1.inst").stdout
    assert "num_hidden_layers  " in text
    assert "  n_layers" not in text  # our own word for it
    assert "As q4 it would take" in text


def test_inspect_a_model(tiny_gguf: Path) -> None:
    done = dots("inspect", tiny_gguf)
    for part in ("dots1 model", "expert_count", "chat template", "experts down"):
        assert part in done.stdout
    assert "can't be run" not in done.stdout
    value = dots("inspect", tiny_gguf, "--json").json
    assert value["model"]["expert_gating_func"] == 2
    assert value["general"]["general.architecture"] == "dots1"
    assert value["chat_template"].startswith("{%")
    assert sum(tensor["bytes"] for tensor in value["tensors"]) < value["file_bytes"]


def test_inspect_prints_json_whatever_a_key_holds(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    gguf_maker.dots1().set("dots1.a", "f32", math.nan).set("b", "f32", -math.inf).write(path)
    done = dots("inspect", path, "--json")
    value = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (value["model"]["a"], value["general"]["b"]) == ("nan", "-inf")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a model at all", b"GGUF\x03" + b"\xff" * 60]
)
def test_inspect_refuses_what_it_can_not_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    for name in ("inspect", "prompt"):
        words = (name, path) if name == "inspect" else (name, "hi", "-m", path)
        done = dots(*words)
        assert done.exit_status == 1
        assert str(path) in done.stderr
        assert done.stderr.startswith("error: ")


def test_inspect_what_is_not_there() -> None:
    done = dots("inspect", "no/such/path")
    assert (done.exit_status, done.stdout) == (1, "")
    assert "no/such/path not found" in done.stderr


def test_without_a_model_the_nano_model_is_made_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "nano_checkpoint", lambda: tiny_checkpoint)
    places = {"XDG_CACHE_HOME": str(tmp_path)}
    words = ("prompt", "hi", "-n", "1", "--json", "--batch-size", "1")
    first = dots(*words, environ=places)
    assert first.exit_status == 0
    assert first.stderr.count("\n") == 1
    assert "using the built-in nano model" in first.stderr
    assert "dots quantize PATH/TO/dots.llm1.inst" in first.stderr
    (made,) = (tmp_path / "dots").iterdir()
    assert made.name.startswith("nano-q4-")
    assert first.json["model"] == str(made)
    before = made.stat().st_mtime_ns
    assert dots(*words, environ=places).exit_status == 0
    assert dots(*words, "-m", "nano", environ=places).stderr == ""
    assert made.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "dots").iterdir()] == [made.name]


def test_a_cache_that_can_not_be_written_is_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "nano_checkpoint", lambda: tiny_checkpoint)
    (tmp_path / "dots").write_text("a file, not a folder")
    done = dots("prompt", "hi", environ={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.exit_status == 1
    assert "XDG_CACHE_HOME" in done.stderr


def test_the_cached_nano_model_follows_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "a", seed=1)
    other = tiny.write_checkpoint(tmp_path / "b", seed=2)
    assert catalog.fingerprint(checkpoint) == catalog.fingerprint(checkpoint)
    assert catalog.fingerprint(checkpoint) != catalog.fingerprint(other)


def test_a_model_by_its_name_in_the_models_folder(tiny_gguf: Path) -> None:
    places = {"DOTS_MODELS": str(tiny_gguf.parent)}
    for name in ("tiny", "tiny.gguf"):
        done = dots("prompt", "hi", "-n", "1", "--json", "-m", name, environ=places)
        assert done.json["model"] == str(tiny_gguf)


def test_a_checkpoint_is_not_a_model_yet(tiny_checkpoint: Path) -> None:
    done = dots("prompt", "hi", "-m", tiny_checkpoint)
    assert done.exit_status == 1
    assert f"hint: dots quantize {tiny_checkpoint}" in done.stderr


def test_a_folder_with_one_model_stands_for_it(tiny_gguf: Path) -> None:
    done = dots("prompt", "hi", "-n", "1", "--json", "-m", tiny_gguf.parent)
    assert done.json["model"] == str(tiny_gguf)


def test_a_later_part_of_a_split_model_names_the_first(tmp_path: Path) -> None:
    part = tmp_path / "big-00002-of-00003.gguf"
    part.touch()
    done = dots("prompt", "hi", "-m", part)
    assert done.exit_status == 1
    assert f"hint: give the first part: {tmp_path / 'big-00001-of-00003.gguf'}" in done.stderr


def test_json_is_json_for_other_programs(tiny_gguf: Path) -> None:
    line = " ".join(command("prompt", "-m", tiny_gguf, "hi", "-n", "3", "--json", "-q"))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{line} | {sys.executable} -m json.tool"],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["finish_reason"] == "length"
    assert done.stderr == ""
    assert os.linesep in done.stdout
