"""Ctrl-C while C code runs: noted at once, acted upon when the C code has returned.

A Python signal handler that raises inside a ctypes callback is lost: ctypes can only print the
exception and go on. So while llama.cpp may call back, the handlers of SIGINT and SIGTERM are
replaced by one that makes a note; the callbacks look at the note and tell llama.cpp to stop, and
when the call is over the user's own handler gets the signal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a signal has come; delivers it at the end.

    Outside the main thread, and for signals without a Python handler, nothing changes.
    """
    noted: list[tuple[int, FrameType | None]] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                previous[number] = handler

    def note(number: int, frame: FrameType | None) -> None:
        noted.append((number, frame))

    for ours in previous:
        signal.signal(ours, note)
    try:
        yield lambda: bool(noted)
    finally:
        for ours, handler in previous.items():
            signal.signal(ours, handler)
        for came, frame in noted[:1]:
            previous[signal.Signals(came)](came, frame)
