"""What comes in: stdin and files as text, bounded, and the keys of a terminal.

Half of `dotscli.terminal.terminal.Terminal`, which adds what goes out. It knows no model.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from dotscli.errors import DotsError
from dotscli.terminal.reading import (
    MAX_TEXT_NBYTES,
    noted_wait,
    read_bounded,
    read_named,
    too_long,
)


class Input:
    """The reading half of a terminal."""

    stdin: TextIO
    quiet: bool

    def __init__(self) -> None:
        self._echoes = True
        self._give_keys_back: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        """A line for the person at the terminal."""
        raise NotImplementedError

    def warn(self, text: str) -> None:
        """One `warning:` line."""
        raise NotImplementedError

    def put_err(self, text: str) -> None:
        """Text on stderr as it is."""
        raise NotImplementedError

    def read_stdin(self) -> str:
        """All of stdin as text; if nobody ends it, a note says after two seconds what is awaited.

        Raises:
            DotsError: it is binary, or without an end.
        """
        raw = getattr(self.stdin, "buffer", None)
        with noted_wait(self.note, "waiting for the end of stdin; to give none, use `< /dev/null`"):
            if raw is not None:
                data = read_bounded(raw, "stdin")
            else:
                data = self.stdin.read().encode("utf-8", "replace")
        return self.decode(data, "stdin")

    def lines(self, prompt: str = "") -> Iterator[str]:
        """The lines of stdin as they come, without their ends; `prompt` is shown on stderr."""
        raw = getattr(self.stdin, "buffer", self.stdin)
        while True:
            if prompt and not self.quiet:
                self.put_err(prompt)
            line = raw.readline(MAX_TEXT_NBYTES + 1)
            if not line:
                return
            if len(line) > MAX_TEXT_NBYTES:
                raise too_long("a line of stdin")
            text = line if isinstance(line, str) else self.decode(line, "stdin")
            yield text.removesuffix("\n").removesuffix("\r")

    @contextmanager
    def keys_kept(self) -> Iterator[None]:
        """What is typed while nobody reads waits unseen, and Enter stays Enter.

        Otherwise it would be shown in the middle of an answer, and arrive as a newline.
        """
        try:
            import termios
        except ImportError:  # Windows
            yield
            return
        descriptor = self.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[0] &= ~termios.ICRNL
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(descriptor, termios.TCSANOW, changed)
        self._echoes = False

        def set_keys(attributes: list[Any]) -> None:
            termios.tcsetattr(descriptor, termios.TCSANOW, attributes)

        self._give_keys_back = lambda: set_keys(before)
        try:
            with _suspending(lambda: set_keys(before), lambda: set_keys(changed)):
                yield
        finally:
            self._echoes = True
            self._give_keys_back()

    def decode(self, data: bytes, origin: str) -> str:
        """Text from bytes; invalid UTF-8 is replaced, with a warning.

        Raises:
            DotsError: there are zero bytes in it, so it isn't text at all.
        """
        if b"\0" in data:
            raise DotsError(f"{origin} is binary, not text", hint="give a text file in UTF-8")
        text = data.decode("utf-8", "replace").removeprefix("\ufeff")
        if data and b"\xef\xbf\xbd" not in data and (invalid := text.count("\ufffd")):
            self.warn(f"{origin} is not valid UTF-8: characters replaced: {invalid}")
        return text

    def read_file(self, path: Path) -> str:
        """A text file the user named.

        Raises:
            DotsError: it can't be read, it is binary, or longer than any text.
        """
        return self.decode(read_named(path, self.note), str(path))


@contextmanager
def _suspending(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """A block in which Ctrl-Z leaves the terminal as it was, and coming back takes it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def suspend(number: int, frame: FrameType | None) -> None:
        before()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # the process stops here, until SIGCONT
        signal.signal(signal.SIGTSTP, suspend)
        after()

    previous = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, previous)
