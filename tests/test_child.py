"""Children that may be killed: what they answer, and every way in which they don't."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dotscli.errors import DotsError
from dotscli.models import child as mechanism
from dotscli.models import child_loop, child_pipe
from dotscli.models.child import Child, ChildError

MODULE = "tests.child_kit"
MIB = 1024**2


@pytest.fixture(scope="module", params=[child_pipe.PolledPipes, child_pipe.ThreadedPipes])
def kept(request: pytest.FixtureRequest) -> Iterator[Child]:
    """One for all that leaves it alive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mechanism, "pipes_of", request.param)
        child = Child(MODULE, 200 * MIB)
        child.start()
    yield child
    child.stop()


@pytest.fixture(params=[child_pipe.PolledPipes, child_pipe.ThreadedPipes])
def child(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """Talked to in both ways, though a system uses only one of them."""
    monkeypatch.setattr(mechanism, "pipes_of", request.param)
    child = Child(MODULE, 200 * MIB)
    yield child
    child.stop()


def pid_of(child: Child) -> int:
    assert child._running is not None
    return child._running.process.pid


@pytest.mark.parametrize("text", ["", "é字😀", "\udcff and \ud800", "a\0b", "x" * 3_000_000])
def test_any_text_comes_back_as_it_was(kept: Child, text: str) -> None:
    assert kept.ask({"do": "echo", "value": text}, 5) == text


def test_a_refusal_comes_back_as_the_error_it_was(kept: Child) -> None:
    with pytest.raises(DotsError, match=r"^no$") as caught:
        kept.ask({"do": "refuse"}, 5)
    assert caught.value.hint == "ask otherwise"


def test_a_refusal_that_quotes_its_input_is_cut(kept: Child) -> None:
    with pytest.raises(DotsError) as caught:
        kept.ask({"do": "refuse", "times": 1_000_000}, 5)
    assert caught.value.message == "no" * (mechanism.MAX_REASON // 2) + "..."
    assert caught.value.hint == "ask otherwise"


def test_it_sees_none_of_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TZ", "UTC")
    child = Child(MODULE, 200 * MIB, {"EXTRA": "1"})
    seen = child.ask({"do": "environment"}, 5)
    child.stop()
    assert seen["TZ"] == "UTC"
    assert seen["EXTRA"] == "1"
    assert set(seen) <= {"TZ", "EXTRA", "LC_CTYPE", *mechanism.KEPT_VARIABLES}


def test_what_c_code_prints_is_no_answer(kept: Child) -> None:
    assert kept.ask({"do": "print"}, 5) is None
    assert kept.ask({"do": "echo", "value": 1}, 5) == 1


def test_a_call_that_hangs_in_c_is_ended(child: Child) -> None:
    child.ask({"do": "echo", "value": 1}, 5)
    pid = pid_of(child)
    start = time.monotonic()
    with pytest.raises(ChildError, match=r"more than 0\.2 s") as caught:
        child.ask({"do": "hang"}, 0.2)
    assert caught.value.reason == "time"
    assert time.monotonic() - start < 2
    assert not psutil.pid_exists(pid)


def test_after_an_end_the_next_question_has_a_new_child(child: Child) -> None:
    with pytest.raises(ChildError):
        child.ask({"do": "sleep", "seconds": 9}, 0.1)
    assert not child.running
    assert child.ask({"do": "echo", "value": 2}, 5) == 2


def test_memory_is_watched(child: Child) -> None:
    with pytest.raises(ChildError, match="more than 200 MiB of memory") as caught:
        child.ask({"do": "grow", "mebibytes": 240, "seconds": 9}, 9)
    assert caught.value.reason == "memory"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't count what malloc maps")
def test_memory_is_bounded_even_when_nobody_watches() -> None:
    child = Child(MODULE, 1 << 40)
    with pytest.raises(ChildError, match="more memory than it may have") as caught:
        child.ask({"do": "grow", "mebibytes": 400, "seconds": 0}, 9)
    assert caught.value.reason == "memory"
    child.stop()


def test_a_crash_and_last_words_are_told_in_one_line(child: Child) -> None:
    with pytest.raises(ChildError, match=rf"^its process died \(signal {signal.SIGSEGV:d}\)"):
        child.ask({"do": "crash"}, 5)
    with pytest.raises(ChildError, match=r"^its process died \(exit status 3\): the last words$"):
        child.ask({"do": "complain"}, 5)
    with pytest.raises(ChildError, match=r"^ValueError: what nobody has foreseen$"):
        child.ask({"do": "stumble"}, 5)


def test_questions_and_answers_have_a_greatest_length(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_loop, "MAX_FRAME", 1000)
    assert child.ask({"do": "flood", "nbytes": 900}, 9) == "x" * 900
    with pytest.raises(ChildError, match="an answer of 1012 bytes") as caught:
        child.ask({"do": "flood", "nbytes": 1000}, 9)
    assert caught.value.reason == "bytes"
    monkeypatch.setattr(mechanism, "MAX_FRAME", 1000)
    with pytest.raises(ChildError, match="the limit is 1000"):
        child.ask({"do": "echo", "value": "x" * 1000}, 5)


def test_ctrl_c_ends_the_waiting_and_the_child_at_once(child: Child) -> None:
    child.ask({"do": "echo", "value": 1}, 5)
    pid = pid_of(child)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.ask({"do": "hang"}, 30)
    assert time.monotonic() - start < 2
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_child_is_out_of_the_terminals_reach_and_ignores_ctrl_c(child: Child) -> None:
    child.ask({"do": "echo", "value": 1}, 5)
    assert os.getsid(pid_of(child)) != os.getsid(0)
    os.kill(pid_of(child), signal.SIGINT)
    assert child.ask({"do": "echo", "value": 3}, 5) == 3


@pytest.mark.parametrize("busy", [False, True])
def test_a_child_ends_with_its_parent(busy: bool) -> None:
    code = (
        "import threading, time; from dotscli.models.child import Child\n"
        f"child = Child({MODULE!r}, 1 << 40); child.ask({{'do': 'echo', 'value': 1}}, 9)\n"
        "ask = lambda: child.ask({'do': 'hang'}, 0.3)\n"
        f"if {busy}: threading.Thread(target=ask, daemon=True).start(); time.sleep(0.1)\n"
        "print(child._running.process.pid, flush=True); time.sleep(99)"
    )
    root = Path(__file__).resolve().parents[1]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 3
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_has_been_stopped_is_gone(child: Child) -> None:
    child.start()
    pid = pid_of(child)
    child.stop()
    child.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python"])
def test_without_an_interpreter_it_says_so(
    executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    child = Child(MODULE, MIB)
    with pytest.raises(ChildError) as caught:
        child.ask({"do": "echo", "value": 1}, 5)
    assert caught.value.reason == "start"


def test_a_module_that_does_not_load_is_told() -> None:
    with pytest.raises(ChildError, match=r"ModuleNotFoundError.*no_such_module"):
        Child("dotscli.no_such_module", 200 * MIB).ask({}, 5)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_child_that_needs_no_files_can_open_none() -> None:
    code = "from tests.child_kit import locked_down; locked_down()"
    child = Child(MODULE, 200 * MIB)
    assert child.ask({"do": "open"}, 5) > 0
    child.stop()
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    question = mechanism.packed({"do": "open"})
    out, _ = process.communicate((5000).to_bytes(4, "little") + question, timeout=9)
    assert b"Too many open files" in out
