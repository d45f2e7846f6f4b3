"""Where the messages of a chat come from: a line editor at a terminal, plain lines elsewhere.

At a terminal it is prompt_toolkit: several lines in one message, history, a popup of commands.
From a pipe, messages are read line by line until it ends. What they mean is not known here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from dotscli.conversation.slash import COMMANDS
from dotscli.errors import DotsError
from dotscli.folders import state_folder
from dotscli.models.regular_file import other_kind
from dotscli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import Application

PROMPT, MORE, BLOCK = ">>> ", "... ", '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """The next message. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def edit(self, text: str) -> str:
        """The next message, which begins as this one. Raises DotsError where that can't be."""


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
        while not _ended("\n".join(filter(None, lines))):
            line = next(self._lines, None)
            if line is None:
                break
            lines.append(line)
        return joined("\n".join(line for line in lines if line is not None))

    def edit(self, text: str) -> str:
        """Lines can't be changed once they have been typed."""
        raise DotsError("a question can't be edited here", hint="/edit and the new question")


def _ended(text: str) -> bool:
    if text.startswith(BLOCK):
        return text.count(BLOCK) > 1
    return not text.endswith("\\")


def joined(text: str) -> str:
    """The message without what only held its lines together."""
    if text.startswith(BLOCK):
        return text.removeprefix(BLOCK).rstrip().removesuffix(BLOCK).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


class PromptReader:
    """Messages typed at a terminal."""

    def __init__(self, terminal: Terminal, toolbar: Callable[[], str]) -> None:
        self._session = _session(terminal, toolbar)

    def read(self) -> str:
        """The next message, after Enter. An Enter typed during an answer is a newline by then."""
        with _termination(self._session.app):
            return joined(self._session.prompt().rstrip("\n"))

    def edit(self, text: str) -> str:
        """The same with the line filled in."""
        with _termination(self._session.app):
            return joined(self._session.prompt(default=text).rstrip("\n"))


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


def _session(terminal: Terminal, toolbar: Callable[[], str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import ColorDepth, create_output
    from prompt_toolkit.styles import Style

    class Commands(Completer):
        """The commands that begin like the line, each with what it does; paths after /file."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            text = document.text_before_cursor
            if text.startswith("/file "):
                path = Document(text.removeprefix("/file "))
                yield from PathCompleter(expanduser=True).get_completions(path, complete_event)
            if not text.startswith("/") or " " in text or "\n" in text:
                return
            for name, (arguments, what) in COMMANDS.items():
                if name.startswith(text):
                    yield Completion(
                        name, -len(text), display=f"{name} {arguments}", display_meta=what
                    )

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _ended(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def give_up(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            buffer.append_to_history()  # the up arrow brings it back
            event.app.exit(result="")
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    colour = terminal.colour(True)
    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=keys,
        completer=Commands(),
        complete_while_typing=True,
        enable_suspend=True,  # Ctrl-Z; what was typed is drawn again afterwards
        reserve_space_for_menu=5,
        history=_history(terminal),
        bottom_toolbar=toolbar,
        style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
        color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
        output=create_output(terminal.stdout if terminal.stdout_is_tty else terminal.stderr),
    )


def _history(terminal: Terminal) -> Any:
    """Lines typed before, in a file that nobody else can read; in memory where that fails."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = state_folder(terminal.environ) / "history"
    if other_kind(path):
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def at_editor(terminal: Terminal) -> bool:
    """Whether there is a terminal to type at and one to draw on."""
    draws = (terminal.stdout_is_tty or terminal.stderr_is_tty) and not terminal.is_dumb
    return terminal.stdin_is_tty and draws


def reader_for(terminal: Terminal, toolbar: Callable[[], str]) -> Reader:
    """The line editor at a terminal, lines elsewhere."""
    return PromptReader(terminal, toolbar) if at_editor(terminal) else LineReader(terminal)
