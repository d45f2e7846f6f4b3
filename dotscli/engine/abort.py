"""The end of the process where C code can't go on, or doesn't come back: one line, and out.

ggml aborts the process where it finds no way on: a worker that is lost, an error of the GPU. It can
be given a callback that hears the reason first. That runs on whatever thread it was, with C code
above it that can't be unwound, so all it can do is say why and leave.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from dotscli.engine.interrupt import not_endless
from dotscli.engine.lib import ggml
from dotscli.engine.rpc.client import lost_worker
from dotscli.errors import DotsError

_said: list[Callable[[DotsError], None]] = []
_ended = threading.Lock()


def say_at_abort(say: Callable[[DotsError], None]) -> None:
    """From now on an abort of ggml calls `say`, and the process ends with that error's status.

    `say` must not count on any other thread.
    """
    _said[:] = [say]
    set_callback = ggml("ggml_set_abort_callback", None, ctypes.c_void_p)
    set_callback(ctypes.cast(_given_up, ctypes.c_void_p))
    atexit.register(set_callback, None)  # no Python is left to call when C++ cleans up


def waiting_for(workers: object) -> AbstractContextManager[None]:
    """A block in which Ctrl-C ends the process if a worker keeps C code from returning."""

    def give_up(status: int) -> None:
        error = lost_worker()
        _end(DotsError(error.message, error.hint, status))

    return not_endless(give_up) if workers else nullcontext()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]  # ctypes has no types
def _given_up(message: bytes) -> None:
    text = message.decode("utf-8", "replace")
    if "ggml-rpc" in text.partition(": ")[0]:  # FILE:LINE: reason
        _end(lost_worker())
    _end(DotsError(f"llama.cpp aborted: {text}", hint="run again with -v to see what led to it"))


def _end(error: DotsError) -> NoReturn:
    _ended.acquire()  # never released: threads that fail together say it once
    try:
        for say in _said:
            say(error)
    finally:
        os._exit(error.exit_status)
