"""Threads of the quantizing pass: results in order, errors handed on, signals at any moment."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from dotscli.errors import DotsError
from dotscli.quantize.threads import in_order


def forever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def run(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    with in_order(run, range(100), threads) as results:
        assert list(results) == [item * item for item in range(100)]


def test_nothing_to_do() -> None:
    with in_order(str, [], 3) as results:
        assert list(results) == []


def test_an_error_comes_where_its_result_would_have_come() -> None:
    def run(item: int) -> int:
        if item == 5:
            raise DotsError("not this one")
        return item

    seen = []
    with pytest.raises(DotsError, match="not this one"), in_order(run, forever(), 3) as results:
        for result in results:
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


def test_no_thread_works_when_the_block_is_left() -> None:
    at_work = []

    def run(item: int) -> int:
        at_work.append(item)
        time.sleep(0.02)
        at_work.remove(item)
        return item

    with in_order(run, forever(), 4) as results:
        next(results)
    assert at_work == []


def test_the_main_thread_takes_no_lock_made_in_python() -> None:
    """A signal that raises after such a lock was taken and before `with` knows of it leaves it
    taken for ever: the threads wait for it, and Ctrl-C for the threads."""
    modules = set()

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            modules.add(frame.f_globals.get("__name__", ""))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with in_order(str, range(200), 2) as results:
            n_results = sum(1 for _ in results)
    finally:
        sys.settrace(before)
    assert n_results == 200
    assert "dotscli.quantize.threads" in modules
    assert not [name for name in modules if name.startswith(("threading", "concurrent"))]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX timers")
def test_a_signal_at_any_moment_ends_the_work() -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    n_stopped = 0
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for attempt in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + attempt % 50 * 0.00005)
                with in_order(str, forever(), 2) as results:
                    for _ in results:
                        pass
            except Stop:
                n_stopped += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_stopped == 300
    assert threading.active_count() < 50
