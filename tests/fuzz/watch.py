"""Watches a child while it runs inputs: how long each takes, what it weighs; and ends it.

Time is that of the processor, so that a busy machine is no finding; a child that only waits, or has
to, has longer. What processes the child has started count as its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from tests.fuzz.child import MAX_NBYTES, MAX_SECONDS
from tests.fuzz.inflight import Inflight

POLL_S = 0.02
FAMILY_POLLS = 5  # of how many looks one is at the child's own children as well
PATIENCE_S = 60.0  # for an input that waits, or has to share the processor with others
OPEN_S = 180.0  # for a target to make its valid inputs


@dataclass
class Watched:
    """What was seen of a child.

    Attributes:
        killed: hang or memory, or nothing where it came to its end by itself.
        seconds: from its first input on.
        peak_nbytes, slowest_s: the most that one input took, of memory and of processor time.
    """

    killed: str = ""
    seconds: float = 0.0
    peak_nbytes: int = 0
    slowest_s: float = 0.0


@dataclass(frozen=True)
class Family:
    """All processes below one: bytes of memory, seconds of processor time."""

    rss: int
    busy_s: float


def watch(process: subprocess.Popen[bytes], shared: Inflight) -> Watched:
    """Wait for the end of a child, or for an input that takes too much; then it still runs."""
    seen, began = Watched(), 0.0
    try:
        for now, elapsed_s, busy_s, grown in _looks(process, shared):
            began = began or now
            took_s = min(elapsed_s, busy_s)
            seen.seconds = now - began
            seen.slowest_s = max(seen.slowest_s, took_s)
            seen.peak_nbytes = max(seen.peak_nbytes, grown)
            late = took_s > MAX_SECONDS or elapsed_s > PATIENCE_S
            if late or grown > MAX_NBYTES:
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.3)  # for the stack to be written
                seen.killed = "memory" if grown > MAX_NBYTES else "hang"
                return seen
    except psutil.NoSuchProcess:
        pass
    process.wait()
    return seen


def _looks(
    process: subprocess.Popen[bytes], shared: Inflight
) -> Iterator[tuple[float, float, float, int]]:
    """Again and again: the time; of the input in flight how long it runs, its processor time, and
    by how many bytes the processes have grown.
    """
    watched, opened = psutil.Process(process.pid), time.monotonic()
    looks = number = 0
    others = before = Family(0, 0.0)
    while process.poll() is None:
        time.sleep(POLL_S)
        state, now = shared.state(), time.monotonic()
        if state.n_begun == 0:
            if now - opened > OPEN_S:
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.3)  # for the stack to be written
                raise RuntimeError(f"a target does not open in {OPEN_S:.0f} s")
            continue
        looks += 1
        if looks % FAMILY_POLLS == 0:
            if state.n_begun != number:
                number, before = state.n_begun, others
            others = _family(watched)
        if not state.started:
            yield now, 0.0, 0.0, 0
            continue
        with watched.oneshot():
            grown = watched.memory_info().rss - state.rss + max(0, others.rss - before.rss)
            busy_s = sum(watched.cpu_times()[:2]) - state.busy_s
        busy_s += max(0.0, others.busy_s - before.busy_s)
        yield now, now - state.started, busy_s, grown


def _family(watched: psutil.Process) -> Family:
    rss, busy_s = 0, 0.0
    for child in watched.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            rss += child.memory_info().rss
            busy_s += sum(child.cpu_times()[:2])
    return Family(rss, busy_s)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and everything that it has started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()
