"""Ctrl-C while C code runs: noted at once, acted upon when the C code has returned, or hasn't.

A Python signal handler that raises inside a ctypes callback is lost: ctypes can only print the
exception and go on. So while llama.cpp may call back, the handlers of SIGINT and SIGTERM are
replaced by one that makes a note; the callbacks look at the note and tell llama.cpp to stop, and
when the call is over the user's own handler gets the signal.

C code that waits for another machine may never return. Then only another thread can end it.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 30.0  # a worker may be in the middle of a long batch


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


@contextmanager
def not_endless(give_up: Callable[[int], None]) -> Iterator[None]:
    """A block that a signal ends in any case.

    `give_up` is called on another thread, with the exit status, if the block still runs PATIENCE_S
    after a signal, or at the second one. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, give_up), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def _watch(reader: socket.socket, give_up: Callable[[int], None]) -> None:
    """Reads the numbers of signals as they come, until the other end is closed."""
    came: list[int] = []
    try:
        while len(came) < 2:
            number = reader.recv(1)
            if not number:
                return
            if number[0] in SIGNALS:
                came.append(number[0])
                reader.settimeout(PATIENCE_S)
    except TimeoutError:
        pass
    give_up(128 + came[-1])
