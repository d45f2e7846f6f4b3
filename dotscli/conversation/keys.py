"""The line editor of a chat: its keys, its completions, its history.

Built on prompt_toolkit, which is imported when the first line is read. It knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dotscli.conversation.pastes import Pastes, ended
from dotscli.conversation.slash import COMMANDS
from dotscli.folders import state_folder
from dotscli.models.regular_file import other_kind
from dotscli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings

PROMPT, MORE, WRAPPED = ">>> ", "... ", "    "  # a new line is told from one that only wraps
PATHS, SESSIONS = ("/file ", "/model "), ("/load ",)  # what is completed behind which command


def prompt_session(
    terminal: Terminal,
    toolbar: Callable[[], str],
    sessions: Callable[[], Sequence[str]],
    pastes: Pastes,
) -> PromptSession[str]:
    """An editor for messages of several lines.

    Args:
        toolbar: the line at the bottom.
        sessions: names of saved conversations.
        pastes: gets long texts that are pasted.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import ColorDepth, create_output
    from prompt_toolkit.styles import Style

    colour = terminal.colour(True)
    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=lambda width, line, wraps: WRAPPED if wraps else MORE,
        key_bindings=_keys(pastes),
        completer=_completer(sessions),
        complete_while_typing=True,
        enable_suspend=True,  # Ctrl-Z; what was typed is drawn again afterwards
        reserve_space_for_menu=5,
        history=_history(terminal, pastes),
        bottom_toolbar=toolbar,
        tempfile_suffix=".md",
        style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
        color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
        output=create_output(terminal.stdout if terminal.stdout_is_tty else terminal.stderr),
    )
    return session


def _keys(pastes: Pastes) -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if ended(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("<bracketed-paste>")
    def paste(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(pastes.shown(event.data))

    @keys.add("c-g")
    def edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        buffer.text = pastes.expanded(buffer.text)
        buffer.open_in_editor()

    @keys.add("c-c")
    def give_up(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            buffer.append_to_history()  # the up arrow brings it back
            event.app.exit(result="")
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def _completer(sessions: Callable[[], Sequence[str]]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """Commands that begin like the line, each with what it does; then paths or sessions."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            for command in PATHS:
                if text.startswith(command):
                    path = Document(text.removeprefix(command))
                    yield from PathCompleter(expanduser=True).get_completions(path, complete_event)
            for command in SESSIONS:
                if text.startswith(command):
                    begun = text.removeprefix(command)
                    for name in sessions():
                        if name.startswith(begun):
                            yield Completion(name, -len(begun))
            if not text.startswith("/") or " " in text or "\n" in text:
                return
            for name, (arguments, what) in COMMANDS.items():
                if name.startswith(text):
                    yield Completion(
                        name, -len(text), display=f"{name} {arguments}", display_meta=what
                    )

    return Commands()


def _history(terminal: Terminal, pastes: Pastes) -> Any:
    """Lines typed before, in a file that nobody else can read; in memory where that fails."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class History(FileHistory):
        """The file has what was pasted, and not the name that stands for it."""

        def store_string(self, string: str) -> None:
            super().store_string(pastes.expanded(string))

    path = state_folder(terminal.environ) / "history"
    if other_kind(path):
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return History(str(path))
