"""Models whose metadata wants to hurt: the command ends in a line, or goes on without it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import gguf_maker
from tests.transcript import command, dots, environment

# A value of 32 MB shows from outside that it has begun.
LARGE = "{% set a = '😀' * 4000000 %}{% set b = '😀' * 4000000 %}"
HANG = LARGE + "{{ a | length | round(300000000, 'ceil') }}"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_template_that_hangs_keeps_nobody_from_leaving(
    number: int, status: int, tmp_path: Path
) -> None:
    made = gguf_maker.dots1().set("tokenizer.chat_template", "string", HANG)
    process = subprocess.Popen(
        command("prompt", "-m", made.write(tmp_path / "m.gguf"), "hi"),
        env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (renderer := _renderer(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - start < 3
    assert out.strip() == b""
    assert b"Traceback" not in err
    assert not renderer.is_running()


def _renderer(pid: int) -> psutil.Process | None:
    """The child, once it renders."""
    for child in psutil.Process(pid).children():
        if child.memory_info().rss > 40 * 1024**2:
            return child
    return None


def test_a_template_that_hangs_is_an_error_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dotscli.models.template_limits.MAX_SECONDS", 0.3)
    made = gguf_maker.dots1().set("tokenizer.chat_template", "string", HANG)
    done = dots("prompt", "-m", made.write(tmp_path / "m.gguf"), "hi", "-q")
    assert done.exit_status == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: the chat template stopped: it runs for more than 0.3 s"
    assert "--no-template" in hint


def test_advice_that_would_take_all_memory_is_left_out(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    made.set("general.sampling.penalty_last_n", "i32", 2**31 - 1)
    made.set("general.sampling.penalty_repeat", "f32", 1.5)
    made.set("general.sampling.temp", "f32", float("nan"))
    path = made.write(tmp_path / "m.gguf")
    done = dots("prompt", "-m", path, "hi", "-n", "2", "--no-template")
    assert done.exit_status == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: {path}: general.sampling.temp is nan, not between -100 and 100: ignored, "
        "--temp is 0.8",
        f"warning: {path}: general.sampling.penalty_last_n is 2147483647, not between 0 and "
        "1048576: ignored, --repeat-last-n is 64",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-n", "-2"), "--n-predict -2 is out of range"),
        (("-n", "9" * 30), "--n-predict more than 1e20"),
        (("--stop", ""), "--stop: a stop string is empty"),
        (("--seed", str(2**32)), "--seed 4294967296 is out of range"),
        (("--temp", "nan"), "--temp nan is out of range"),
        (("--temp=-inf",), "--temp -inf is out of range"),
        (("--top-p", "inf"), "--top-p inf is out of range"),
        (("--repeat-last-n", "2147483647"), "--repeat-last-n 2147483647 is out of range"),
        (("--repeat-penalty", "nan"), "--repeat-penalty nan is out of range"),
        (("-ngl", "9" * 5000), "invalid --n-gpu-layers"),
        (("-c", "9" * 400), "Invalid value for '--ctx-size'"),
        (("--hot", "9" * 400 + "G"), "invalid --hot"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_numbers_out_of_range_are_usage_errors_before_anything_is_loaded(
    words: tuple[str, ...], said: str
) -> None:
    done = dots("prompt", "-m", "/nowhere.gguf", "hi", *words)
    assert done.exit_status == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {said}")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("words", [("--grammar", ""), ("--grammar", " # nothing\n")])
def test_an_empty_grammar_is_refused_before_anything_is_loaded(words: tuple[str, ...]) -> None:
    done = dots("prompt", "-m", "/nowhere.gguf", "hi", *words)
    assert done.exit_status == 1
    assert done.stderr.startswith("error: the grammar is ")


@pytest.mark.parametrize(
    "text",
    ["a\0b", "\ud800", "\u202e\x85", "字" * 300_000],
    ids=["nul", "surrogate", "control", "long"],
)
@pytest.mark.parametrize("raw", [True, False])
def test_any_question_is_answered_or_too_long(text: str, raw: bool, tmp_path: Path) -> None:
    path = gguf_maker.dots1().write(tmp_path / "m.gguf")
    options = ["--no-template"] if raw else []
    done = dots("prompt", "-m", path, text, "-n", "1", "-q", *options)
    if len(text) > 1000:
        assert done.exit_status == 1
        assert done.stderr.startswith("error: the prompt has ")
    else:
        assert (done.exit_status, done.stderr) == (0, "")
