"""What llama.cpp says while it works: kept for error messages, passed on when asked for.

llama.cpp is given one callback for the whole process. The last lines stay in a
bounded ring, because the line that says why a load failed comes only here.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

from dotscli.engine.lib import llama, silence

MAX_LINES = 400
MAX_LINE = 500
DEBUG, WARN, ERROR, CONTINUED = 1, 3, 4, 5  # enum ggml_log_level, ggml.h


class Log:
    """The last lines of llama.cpp, each with its level."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=MAX_LINES)
        self._open = ""
        self._level = 0
        self.listener: Callable[[str], None] | None = None

    def add(self, level: int, text: bytes) -> None:
        """Takes a fragment: lines may come in several, each ends with a newline."""
        if level != CONTINUED:
            self._level = level
        if self._level == DEBUG:  # thousands of lines a load, about single tensors
            return
        self._open += text.decode("utf-8", "replace")
        *lines, rest = self._open.split("\n")
        self._open = rest[-MAX_LINE:]
        for line in lines:
            self._lines.append((self._level, line[:MAX_LINE]))
            if self.listener is not None:
                try:
                    self.listener(line)
                except OSError:  # a closed pipe: nobody listens any more, and C cannot be told
                    self.listener = None

    def clear(self) -> None:
        """Forgets what was said: the next complaint is about the next call."""
        self._lines.clear()

    def complaints(self, limit: int = 3) -> list[str]:
        """The last errors, or the last warnings if there are none; without function names."""
        for wanted in (ERROR, WARN):
            lines = [line for level, line in self._lines if level == wanted and line.strip()]
            if lines:
                return [_without_function(line) for line in lines[-limit:]]
        return []


def _without_function(line: str) -> str:
    head, colon, rest = line.partition(": ")
    return (rest if colon and rest and " " not in head.strip() else line).strip()


@functools.cache
def log() -> Log:
    """The log of this process; from the first call on nothing of llama.cpp reaches stderr."""
    module = llama()
    kept = Log()

    @module.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes has no types
    def receive(level: int, text: bytes, _data: Any) -> None:
        kept.add(level, text)

    kept._callback = receive  # type: ignore[attr-defined]  # C keeps only the address
    module.llama_log_set(receive, ctypes.c_void_p(None))
    # Libraries may log while the process ends, when a callback into Python would crash it.
    atexit.register(silence, module)
    return kept
