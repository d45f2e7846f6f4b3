"""`dots chat`: messages from the reader go into the conversation, answers to the terminal.

What a line means is in `dotscli.conversation.slash`, what is said in
`dotscli.conversation.conversation`, how keys become lines in `dotscli.conversation.editor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext

from dotscli.commands.attached import Attached
from dotscli.commands.chat_session import keep, keep_states, model_of, wanted_session
from dotscli.commands.model import open_engine, resolve
from dotscli.commands.settings import (
    engine_options,
    grammar_for,
    sampling_for,
    stop_strings,
    system_prompt,
)
from dotscli.conversation.answer import Answer, answer_writer, stats_line, with_prefill
from dotscli.conversation.conversation import Conversation, OnPrefill
from dotscli.conversation.editor import PROMPT, Reader, at_editor, reader_for
from dotscli.conversation.journal import Journal
from dotscli.conversation.slash import execute, gauge, parse
from dotscli.engine.sampling import check_n_predict
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError, ExitStatus, OutputError
from dotscli.folders import heat_folder
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.chat import SessionFlags
from dotscli.options.engine import EngineFlags
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import argument


class Loop:
    """A conversation at a terminal."""

    def __init__(
        self,
        terminal: Terminal,
        conversation: Conversation,
        reader: Reader,
        stats: bool,
        journal: Journal | None = None,
        first_state: str | None = None,
        *,
        markdown: bool = False,
    ) -> None:
        self.terminal = terminal
        self.first_state = first_state  # what to say when one is kept for the first time
        self.conversation = conversation
        self.journal = journal
        self.reader = reader
        self.stats = stats
        self.markdown = markdown
        self.attached = Attached(terminal, conversation.engine)

    def run(self, first: str = "") -> int:
        """Until Ctrl-D, /exit, the end of the input or two Ctrl-C; the exit status.

        Args:
            first: a message that is there already.
        """
        interrupted = False
        if first and self._over(first):
            return int(ExitStatus.OK)
        while True:
            try:
                text = self.reader.read()
            except EOFError:
                return int(ExitStatus.OK)
            except KeyboardInterrupt:
                if interrupted or not self.terminal.stdin_is_tty:
                    return int(ExitStatus.INTERRUPTED)
                interrupted = True
                self.terminal.note("to leave: Ctrl-C again, Ctrl-D or /exit")
                continue
            interrupted = False
            if text.strip() and self._over(text):
                return int(ExitStatus.OK)

    def _over(self, text: str) -> bool:
        """Take one message; whether it ends the conversation. An error is said and does not."""
        try:
            return self.turn(text)
        except OutputError:  # nothing that is said from now on would be seen
            raise
        except DotsError as error:
            self.terminal.error(error.message, error.hint)
            return False

    def turn(self, text: str) -> bool:
        """One message or command; whether the conversation is over.

        Raises:
            DotsError: it could not be done; the conversation is as before.
        """
        line = parse(text)
        if isinstance(line, str):
            whole = self.attached.with_text(line)
            self.answer(lambda on_prefill: self.conversation.send(whole, on_prefill))
            self.attached.clear()
            return False
        outcome = execute(self.conversation, line, self.journal)
        if outcome.text:
            self.terminal.note(outcome.text)
        if outcome.stats is not None:
            self.stats = outcome.stats
        if outcome.markdown is not None:
            self.markdown = outcome.markdown
        if outcome.action == "regenerate":
            self.answer(self.conversation.regenerate)
        if outcome.action in ("file", "glob"):
            self.terminal.note(self.attached.command(outcome.action, outcome.argument))
        if outcome.action == "raw":
            self.terminal.write(outcome.argument)
            self.terminal.end_line()
        if outcome.action == "copy":
            self.terminal.note(self.terminal.clipboard(outcome.argument))
        if outcome.action == "edit":
            self._edit(outcome.argument)
        return outcome.action == "exit"

    def _edit(self, question: str) -> None:
        """Another question in the place of the last one; nothing typed leaves all as it was."""
        conversation = self.conversation
        try:
            question = question or self.reader.edit(conversation.last_question)
        except (KeyboardInterrupt, EOFError):
            question = ""
        if question.strip():
            self.answer(lambda on_prefill: conversation.ask_again(question, on_prefill))

    def answer(self, start: Callable[[OnPrefill], Iterator[Piece]]) -> None:
        """Stream one answer; Ctrl-C ends it and keeps what has come."""
        answer = Answer()
        terminal = self.terminal
        try:
            with (
                answer_writer(terminal, markdown=self.markdown) as write,
                closed(with_prefill(terminal, start)) as pieces,
            ):
                answer.read(pieces, write)
        except KeyboardInterrupt:
            answer.stats = self.conversation.engine.stats
            terminal.interrupted()
            terminal.end_line()
            terminal.note(
                "stopped; the partial answer is kept"
                if answer.text
                else "stopped before the first word; the question is withdrawn"
            )
            if not terminal.stdin_is_tty:
                raise
        terminal.end_line()
        if self.conversation.engine.keep_state() and self.first_state is not None:
            terminal.note(self.first_state)
            self.first_state = None
        if answer.finish_reason == "context":
            terminal.warn("the context is full: /drop forgets the oldest turn, /clear every turn")
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
    text: str | None,
    model: str | None,
    session: SessionFlags,
    sampling: SamplingFlags,
    answer: AnswerFlags,
    engine: EngineFlags,
) -> int:
    """Load a model and hold a conversation with it, with `text` as its first message.

    Returns the exit status.

    Raises:
        DotsError: anything that keeps it from beginning.
    """
    options = engine_options(engine, heat_folder(terminal.environ))
    # what is out of range is said before anything is loaded
    sampling_for(sampling, {})
    check_n_predict(answer.n_predict)
    stop = stop_strings(answer)
    system = system_prompt(terminal, answer)
    grammar = grammar_for(terminal, answer)
    at_keyboard = at_editor(terminal)
    wanted = wanted_session(terminal, session, at_keyboard=at_keyboard)
    path = resolve(model_of(wanted, model), terminal)
    with open_engine(terminal, path, options) as loaded:
        conversation = Conversation(
            loaded,
            sampling_for(
                sampling, loaded.metadata, grammar, lambda text: terminal.warn(f"{path}: {text}")
            ),
            system=system,
            n_predict=answer.n_predict,
            stop=stop,
        )
        journal = keep(terminal, wanted, conversation, path)
        first_state = keep_states(terminal, loaded) if journal is not None else None
        reader = reader_for(terminal, lambda: f"{gauge(conversation)} · /help")
        if at_keyboard:
            name = loaded.metadata.get("general.name", path.stem)
            terminal.note(f"{name}: /help lists the commands, Ctrl-D leaves")
        stats = answer.stats if answer.stats is not None else terminal.stderr_is_tty
        first = argument(text or "").strip()
        if first and at_keyboard:
            terminal.note(f"{PROMPT}{first}")
        keys = terminal.keys_kept() if at_keyboard else nullcontext()
        with keys, closing(journal) if journal else nullcontext():
            loop = Loop(
                terminal, conversation, reader, stats, journal, first_state,
                markdown=answer.markdown and grammar is None,
            )  # fmt: skip
            status = loop.run(first)
        if loaded.states and loaded.states.writing:
            terminal.note("writing the context to the disk; Ctrl-C leaves it out")
        return status
