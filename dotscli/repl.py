"""`dots chat`: reads lines, sends them into the conversation, writes the answers.

On a terminal the lines come from prompt_toolkit: several lines in one message, history, a popup
of commands. From a pipe they are read one by one until it ends. What lines mean is in
`dotscli.slash`, what is said in `dotscli.chat`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from dotscli.catalog import resolve, state_folder
from dotscli.chat import Conversation, OnPrefill
from dotscli.errors import DotsError, ExitStatus
from dotscli.loading import (
    engine_options,
    grammar_for,
    open_engine,
    sampling_for,
    stop_strings,
    system_prompt,
    with_prefill,
)
from dotscli.options import AnswerFlags, EngineFlags, SamplingFlags
from dotscli.render import Answer, stats_line
from dotscli.slash import COMMANDS, execute, gauge, parse
from dotscli.stream import Piece
from dotscli.terminal import Terminal

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT, MORE, BLOCK = ">>> ", "... ", '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """The next message. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""


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
        return joined(self._session.prompt().rstrip("\n"))


def _session(terminal: Terminal, toolbar: Callable[[], str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import ColorDepth, create_output
    from prompt_toolkit.styles import Style

    class Commands(Completer):
        """The commands that begin like the line, each with what it does."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            text = document.text_before_cursor
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def reader_for(terminal: Terminal, toolbar: Callable[[], str]) -> Reader:
    """The line editor where there is a terminal to type at and one to draw on."""
    draws = (terminal.stdout_is_tty or terminal.stderr_is_tty) and not terminal.is_dumb
    return (
        PromptReader(terminal, toolbar) if terminal.stdin_is_tty and draws else LineReader(terminal)
    )


class Loop:
    """A conversation at a terminal."""

    def __init__(
        self, terminal: Terminal, conversation: Conversation, reader: Reader, stats: bool
    ) -> None:
        self.terminal = terminal
        self.conversation = conversation
        self.reader = reader
        self.stats = stats

    def run(self) -> int:
        """Until Ctrl-D, /exit, the end of the input or two Ctrl-C; the exit status."""
        interrupted = False
        while True:
            try:
                text = self.reader.read()
            except EOFError:
                return int(ExitStatus.OK)
            except KeyboardInterrupt:
                if interrupted or not self.terminal.stdin_is_tty:
                    return int(ExitStatus.INTERRUPTED)
                interrupted = True
                self.terminal.note("Ctrl-C again, Ctrl-D or /exit leaves")
                continue
            interrupted = False
            if not text.strip():
                continue
            try:
                if self.turn(text):
                    return int(ExitStatus.OK)
            except DotsError as error:
                self.terminal.error(error.message, error.hint)

    def turn(self, text: str) -> bool:
        """One message or command; whether the conversation is over.

        Raises:
            DotsError: it could not be done; the conversation is as before.
        """
        line = parse(text)
        if isinstance(line, str):
            self.answer(lambda on_prefill: self.conversation.send(line, on_prefill))
            return False
        outcome = execute(self.conversation, line)
        if outcome.text:
            self.terminal.note(outcome.text)
        if outcome.stats is not None:
            self.stats = outcome.stats
        if outcome.action == "regenerate":
            self.answer(self.conversation.regenerate)
        return outcome.action == "exit"

    def answer(self, start: Callable[[OnPrefill], Iterator[Piece]]) -> None:
        """Stream one answer; Ctrl-C ends it and keeps what has come."""
        answer = Answer()
        terminal = self.terminal
        try:
            answer.read(with_prefill(terminal, start), terminal.write)
        except KeyboardInterrupt:
            answer.stats = self.conversation.engine.stats
            terminal.interrupted()
            terminal.end_line()
            terminal.note(
                "stopped; the answer stays as far as it came"
                if answer.text
                else "stopped before the first word; the question is taken back"
            )
            if not terminal.stdin_is_tty:
                raise
        terminal.end_line()
        if answer.finish_reason == "context":
            terminal.warn("the context is full: /drop forgets the oldest turn, /clear all of them")
        if self.stats and (answer.text or answer.finish_reason != "interrupted"):
            engine = self.conversation.engine
            terminal.note(
                stats_line(
                    answer.stats,
                    n_ctx=engine.n_ctx,
                    seed=self.conversation.last_seed,
                    finish_reason=answer.finish_reason,
                    width=terminal.width if terminal.stderr_is_tty else 0,
                )
            )


def chat(
    terminal: Terminal,
    model: str | None,
    sampling: SamplingFlags,
    answer: AnswerFlags,
    engine: EngineFlags,
) -> int:
    """Load a model and hold a conversation with it; the exit status.

    Raises:
        DotsError: anything that keeps it from beginning.
    """
    options = engine_options(engine)
    sampling_for(sampling, {})  # values out of range are said before anything is loaded
    system = system_prompt(terminal, answer)
    grammar = grammar_for(terminal, answer)
    path = resolve(model, terminal)
    with open_engine(terminal, path, options) as loaded:
        conversation = Conversation(
            loaded,
            sampling_for(sampling, loaded.metadata, grammar),
            system=system,
            n_predict=answer.n_predict,
            stop=stop_strings(answer),
        )
        reader = reader_for(terminal, lambda: f"{gauge(conversation)} · /help")
        if isinstance(reader, PromptReader):
            terminal.note("/help lists the commands, Ctrl-D leaves")
        stats = answer.stats if answer.stats is not None else terminal.stderr_is_tty
        return Loop(terminal, conversation, reader, stats).run()
