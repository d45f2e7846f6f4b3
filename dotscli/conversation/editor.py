"""Where the messages of a chat come from: a line editor at a terminal, plain lines elsewhere.

At a terminal it is prompt_toolkit: several lines in one message, history, a popup of commands.
From a pipe, messages are read line by line until it ends. What they mean is not known here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from dotscli.conversation.keys import PROMPT, prompt_session
from dotscli.conversation.pastes import Pastes, ended, joined
from dotscli.errors import DotsError
from dotscli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from prompt_toolkit.application import Application


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """The next message. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def edit(self, text: str) -> str:
        """The next message, which begins as this one. Raises DotsError where that can't be."""

    def confirm(self, question: str) -> bool:
        """Whether the answer is yes; no without one. Raises as `read`."""


class LineReader:
    """One message per line, from a pipe or a terminal that can't move its cursor.

    A backslash at the end of a line, or three quotes at its beginning, make it longer.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lines = terminal.lines(PROMPT if terminal.stdin_is_tty else "")

    def read(self) -> str:
        """The next message; an open block ends with the input."""
        lines = [next(self._lines, None)]
        if lines[0] is None:
            raise EOFError
        while not ended("\n".join(filter(None, lines))):
            line = next(self._lines, None)
            if line is None:
                break
            lines.append(line)
        return joined("\n".join(line for line in lines if line is not None))

    def edit(self, text: str) -> str:
        """Lines can't be changed once they have been typed."""
        raise DotsError("a question can't be edited here", hint="/edit and the new question")

    def confirm(self, question: str) -> bool:
        """The next line, if it is a yes."""
        self._terminal.note(f"{question} (y/N)")
        return _is_yes(next(self._lines, None) or "")


def _is_yes(text: str) -> bool:
    return text.strip().lower() in ("y", "yes")


class PromptReader:
    """Messages typed at a terminal."""

    def __init__(
        self, terminal: Terminal, toolbar: Callable[[], str], sessions: Callable[[], Sequence[str]]
    ) -> None:
        self._pastes = Pastes()
        self._session = prompt_session(terminal, toolbar, sessions, self._pastes)

    def read(self) -> str:
        """The next message, after Enter. An Enter typed during an answer is a newline by then."""
        with _termination(self._session.app):
            return self._message(self._session.prompt())

    def edit(self, text: str) -> str:
        """The same with the line filled in."""
        with _termination(self._session.app):
            return self._message(self._session.prompt(default=text))

    def confirm(self, question: str) -> bool:
        """A line of its own, which the history doesn't keep."""
        from prompt_toolkit import PromptSession

        session: PromptSession[str] = PromptSession(output=self._session.output)
        with _termination(session.app):
            return _is_yes(session.prompt(f"{question} (y/N) "))

    def _message(self, text: str) -> str:
        return joined(self._pastes.expanded(text.rstrip("\n")))


@contextmanager
def _termination(app: Application[str]) -> Iterator[None]:
    """Hold SIGTERM back until the editor has given the terminal back.

    An exception out of a signal handler would end in its event loop.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if app.loop is not None and not app.is_done:
            app.loop.call_soon_threadsafe(lambda: app.exit(exception=EOFError))

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        if noted:
            handler(noted[0], None)


def at_editor(terminal: Terminal) -> bool:
    """Whether there is a terminal to type at and one to draw on."""
    draws = (terminal.stdout_is_tty or terminal.stderr_is_tty) and not terminal.is_dumb
    return terminal.stdin_is_tty and draws


def reader_for(
    terminal: Terminal, toolbar: Callable[[], str], sessions: Callable[[], Sequence[str]]
) -> Reader:
    """The line editor at a terminal, lines elsewhere.

    Args:
        toolbar: the line at the bottom.
        sessions: names of saved conversations, to complete /load with.
    """
    if at_editor(terminal):
        return PromptReader(terminal, toolbar, sessions)
    return LineReader(terminal)
