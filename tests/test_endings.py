"""How a command ends: the status says which way, and no way but the reader's own is silent."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dotscli.commands import doctor
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.slash import Command, execute
from dotscli.engine import Engine
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError
from tests import gguf_maker
from tests.transcript import (
    Transcript,
    command,
    dots,
    dots_process,
    environment,
    on_a_terminal,
)

GRAMMAR = ("--grammar", 'root ::= "yes"')
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with pipefail")


def shell(line: str, stdin: bytes = b"", **changes: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of bash; `dots` in it is this checkout."""
    run = " ".join(f"'{word}'" for word in command())
    text = f'set -o pipefail\ndots() {{ {run} "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", text], input=stdin, env=environment(**changes), capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip


# Outputs that nobody reads, or that can't be written


@needs_bash
@pytest.mark.parametrize(
    "line",
    ["doctor", "--help", "plan --help", "config", "prompt hi -n 300 -q", "chat hi -n 300 -q"],
)
def test_a_reader_that_leaves_is_141_as_with_every_program(line: str, tiny_gguf: Path) -> None:
    done = shell(f"dots {line} | true", DOTS_MODEL=str(tiny_gguf))
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


@needs_bash
@pytest.mark.parametrize("line", ["chat hi -q", "chat -q", "prompt hi -q", "doctor", "plan --help"])
def test_a_full_disk_under_stdout_is_1_and_said(line: str, tiny_gguf: Path) -> None:
    done = shell(f"dots {line} -n 4 > /dev/full" if "hi" in line else f"dots {line} > /dev/full",
                 stdin=b"hello\nhello\n", DOTS_MODEL=str(tiny_gguf))  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"error: the output can't be written: No space left on device\n"


@needs_bash
@pytest.mark.parametrize("where", ["/dev/full", ">(exit)"])
def test_a_stderr_that_can_not_be_written_takes_no_answer_away(where: str, tiny_gguf: Path) -> None:
    words = "prompt hi --stats --grammar 'root ::= \"yes\"' -c 4096"
    done = shell(f"dots {words} 2> {where}", DOTS_MODEL=str(tiny_gguf))
    assert (done.returncode, done.stdout) == (0, b"yes\n")


# Errors that nobody has foreseen


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (RuntimeError(), "error: RuntimeError\n"),
        (AssertionError(), "error: AssertionError\n"),
        (EOFError(), "error: EOFError\n"),
        (RecursionError("deep"), "RecursionError: deep"),
        (MemoryError(), "not enough memory"),
        (OSError(), "OSError"),
        (OSError(errno.EIO, "Input/output error", "model"), "Input/output error: 'model'"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),  # a socket's, not stdout's
    ],
)
def test_no_error_is_silent_or_a_traceback(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(doctor, "machine_facts", fail)
    done = dots("doctor", unforeseen=True)
    assert (done.exit_status, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    with pytest.raises(type(error)):
        dots("doctor", environ={"DOTS_DEBUG": "1"})


def test_an_unforeseen_error_says_how_to_look_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_facts", lambda *_: {}["nothing"])
    assert "hint: this is a defect of dots: DOTS_DEBUG=1" in dots("doctor", unforeseen=True).stderr


# Inputs that are waited for


def test_a_pipe_as_a_file_says_what_is_waited_for(tiny_gguf: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "notes"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "-f", pipe, *GRAMMAR), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == (f"waiting for someone to write to {pipe}\n")
    pipe.write_text("hello")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "yes\n")


def test_ctrl_c_ends_the_wait_for_a_pipe(tiny_gguf: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "notes"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "-f", pipe), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_a_text_without_an_end_is_refused() -> None:
    done = dots_process("prompt", "-f", "/dev/zero")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: /dev/zero is longer than 32 MiB")


def test_a_dash_is_stdin_also_at_a_terminal(tiny_gguf: Path) -> None:
    with on_a_terminal("prompt", "-m", tiny_gguf, "-", "-q", *GRAMMAR) as screen:
        time.sleep(0.5)
        screen.type("hello\n\x04")
        screen.wait_for("yes")
        assert screen.wait() == 0
    piped = dots("prompt", "-m", tiny_gguf, "-", "-n", "1", "--json", stdin="hello")
    direct = dots("prompt", "-m", tiny_gguf, "hello", "-n", "1", "--json")
    assert piped.json["usage"] == direct.json["usage"]


# Values, and advice that can be followed


@pytest.mark.parametrize("value", ["-2", "-100", str(2**40)])
def test_a_length_is_minus_1_or_a_number_of_tokens(value: str, tiny_gguf: Path) -> None:
    for name in ("prompt", "chat"):
        done = dots(name, "hi", "-m", tiny_gguf, "-n", value)
        assert done.exit_status == 2
        assert "--n-predict" in done.stderr


@pytest.mark.parametrize("value", ["-2", str(2**40)])
def test_the_same_holds_within_a_conversation(value: str, engine: Engine) -> None:
    conversation = Conversation(engine, Sampling())
    with pytest.raises(DotsError, match=f"--n-predict {value}"):
        execute(conversation, Command("/set", f"n {value}"))
    execute(conversation, Command("/set", "n -1"))
    assert conversation.n_predict == -1


def test_no_context_is_advised_beyond_what_the_model_was_trained_for(tiny_gguf: Path) -> None:
    def advised(n_words: int, ctx: str) -> Transcript:
        return dots("prompt", "-m", tiny_gguf, "-c", ctx, "-n", "1", stdin="hello world " * n_words)

    done = advised(300, "256")
    assert done.exit_status == 1
    found = re.search(r"--ctx-size (\d+)", done.stderr)
    assert found is not None
    assert int(found[1]) <= 2048
    assert advised(300, found[1]).exit_status == 0
    much = advised(90_000, "2048")
    assert much.exit_status == 1
    assert "--ctx-size" not in much.stderr
    assert "give a shorter text: the limit here is 2048 tokens" in much.stderr


def test_a_full_cache_disk_says_what_is_needed_and_where_else(tmp_path: Path) -> None:
    done = subprocess.run(
        command("prompt", "hi"), env=environment(XDG_CACHE_HOME=str(tmp_path)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the nano model can't be kept in {tmp_path / 'dots'}: " in done.stderr
    assert "export XDG_CACHE_HOME=FOLDER" in done.stderr
    assert "--output" not in done.stderr
    assert list((tmp_path / "dots").iterdir()) == []


# What was typed first, what was broken off, what was put aside


def test_a_text_is_the_first_message_of_a_conversation(tiny_gguf: Path, tmp_path: Path) -> None:
    done = dots("chat", "hello", "-m", tiny_gguf, *GRAMMAR, stdin="more\n/show info\n")
    assert (done.exit_status, done.stdout) == (0, "yes\nyes\n")
    assert "turns    2" in done.stderr
    words = ("chat", "hello", "-m", tiny_gguf, *GRAMMAR)
    with on_a_terminal(*words, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(">>> hello")
        screen.wait_for("yes")
        screen.wait_for(">>>")
        screen.type("/show info\r")
        screen.wait_for("turns    1")
        screen.type("/exit\r")
        assert screen.wait() == 0


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_maker.dots1().write(tmp_path_factory.mktemp("wordy") / "wordy.gguf")


def test_tokens_that_were_not_read_are_not_counted(engine: Engine) -> None:
    tokens = engine.tokenize("hello and the world " * 40, parse_special=False)
    assert len(tokens) > 100

    def stop(done: int, total: int) -> None:
        if done >= 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(tokens, Sampling(), on_prefill=stop))
    assert engine.stats.prompt_tokens == 0
    list(engine.generate(tokens, Sampling(), n_predict=1))
    assert engine.stats.prompt_tokens == len(tokens)


def test_ctrl_c_in_a_long_prompt_tells_how_much_was_read(tiny_gguf: Path) -> None:
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "-c", "16384", "-b", "1", "--json", "--stats"),
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("hello and the world " * 1600)
    process.stdin.close()
    while not (line := process.stderr.readline()).startswith("reading the prompt"):
        assert line
    total = int(re.findall(r"of ([\d,]+) tok", line)[0].replace(",", ""))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stdout is not None
    read = json.loads(process.stdout.read())["usage"]["prompt_tokens"]
    assert 0 < read < total
    assert f"prefill {read:,} tok @ " in process.stderr.read()


# Starts a program as a job and says how it left the terminal when it stopped; mends nothing itself.
JOB = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgrp())
    flags = termios.tcgetattr(0)
    line = termios.ICANON | termios.ECHO
    print("stopped, sane" if flags[3] & line == line and flags[0] & termios.ICRNL else "mad")
    sys.stdin.readline()
    os.tcsetpgrp(0, child)
    os.kill(child, signal.SIGCONT)
"""


def test_ctrl_z_in_an_answer_leaves_no_mode_of_the_terminal_behind(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    grammar = ("--grammar", 'root ::= "ab" root', "-n", "12000")
    words = command("chat", "hi", "-m", tiny_gguf, "-c", "16384", "-q", *grammar)
    job = [sys.executable, "-c", JOB, *words]
    with on_a_terminal(shell=job, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for("abababab")
        screen.type("\x1a")
        screen.wait_for("stopped, sane")
        screen.type("\n")
        screen.wait_for("abababab")
        screen.type("xyzzy")  # waits unseen for the end of the answer, as before
        screen.wait_for("abababab" * 20)
        screen.type("\x03")
        assert "xyzzy" not in screen.wait_for(">>>")
        screen.type("\x15/exit\r")
        assert screen.wait() == 0


@needs_bash
def test_ctrl_z_gives_the_terminal_back_and_comes_back(tiny_gguf: Path, tmp_path: Path) -> None:
    grammar = "'root ::= \"ab\" root'"
    line = " ".join(f"'{w}'" for w in command("chat", "-m", tiny_gguf, "-c", "16384", "-q"))
    bash = ["bash", "--norc", "--noprofile", "-i"]
    with on_a_terminal(shell=bash, XDG_STATE_HOME=str(tmp_path), PS1="$ ") as screen:
        screen.wait_for("$ ")
        screen.type("bind 'set enable-bracketed-paste off'\r")
        screen.type(f"{line} --grammar {grammar} -n 12000\r")
        screen.wait_for(">>>")
        screen.type("half a l")
        screen.wait_for("half a l")
        screen.type("\x1a")
        screen.wait_for("Stopped")
        screen.type("stty -a | grep -c -- ' -echo \\| -icanon'; echo modes\r")
        assert screen.wait_for("\nmodes").strip().endswith("0")
        screen.type("fg\r")
        screen.wait_for("half a l")  # drawn again
        screen.type("ine\r")
        screen.wait_for("abababab")
        screen.type("\x03")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        screen.wait_for("$ ")
        screen.type("exit\r")
        screen.wait()
