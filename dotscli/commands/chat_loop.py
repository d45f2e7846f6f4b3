"""The loop of `dots chat`: a message or a command, what it does, and again.

What a line means is in `dotscli.conversation.slash`, what is said in
`dotscli.conversation.conversation`, how keys become lines in `dotscli.conversation.editor`. A
command that needs the model loaded anew ends the loop; who runs it loads and runs another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dotscli.commands.attached import Attached
from dotscli.conversation import room
from dotscli.conversation.answer import (
    OTHER_BITS,
    Answer,
    answer_writer,
    stats_line,
    status_line,
    with_prefill,
)
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.editor import Reader
from dotscli.conversation.journal import Journal
from dotscli.conversation.messages import Message, OnPrefill
from dotscli.conversation.slash import execute, parse
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError, ExitStatus, OutputError
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal


@dataclass(frozen=True)
class Reload:
    """What to load: another model, None for the same; another context, 0 for the same."""

    path: Path | None = None
    n_ctx: int = 0


class Loop:
    """A conversation at a terminal.

    Args:
        find: from what /model was given to a file that can be loaded; raises DotsError.
        stats: whether figures follow each answer; markdown: whether Markdown is drawn.
        journal: where the conversation is saved, None for nowhere.
        first_state: what to say when a context is kept for the first time.
        attached: files that are to go with the next message.

    `reload`: what to load when the loop has ended, if it is to go on then.
    """

    def __init__(
        self,
        terminal: Terminal,
        conversation: Conversation,
        reader: Reader,
        find: Callable[[str], Path],
        *,
        stats: bool,
        markdown: bool,
        journal: Journal | None = None,
        first_state: str | None = None,
        attached: Attached | None = None,
    ) -> None:
        self.terminal = terminal
        self.conversation = conversation
        self.reader = reader
        self.find = find
        self.stats = stats
        self.markdown = markdown
        self.journal = journal
        self.first_state = first_state
        self.attached = attached or Attached(terminal, conversation.engine)
        self.reload: Reload | None = None
        self.bits_said = False

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
        if outcome.action == "summarise":
            self._summarise()
        if outcome.action == "model":
            self.reload = Reload(path=self.find(outcome.argument))
        if outcome.action == "ctx":
            self.reload = Reload(n_ctx=int(outcome.argument))
        return outcome.action in ("exit", "model", "ctx")

    def _edit(self, question: str) -> None:
        """Another question in the place of the last one; nothing typed leaves all as it was."""
        conversation = self.conversation
        try:
            question = question or self.reader.edit(conversation.last_question)
        except (KeyboardInterrupt, EOFError):
            question = ""
        if question.strip():
            self.answer(lambda on_prefill: conversation.ask_again(question, on_prefill))

    def _summarise(self) -> None:
        """A summary instead of the oldest turns, once the reader has seen it and wants it."""
        conversation = self.conversation
        n_ctx = conversation.engine.n_ctx
        n_predict = min(room.SUMMARY_TOKENS, n_ctx // room.ANSWER_SHARE)
        request = Message("user", room.REQUEST)
        n_turns = room.to_summarise(
            conversation.turns,
            lambda turns: conversation.n_tokens_of([*turns, request]),
            n_ctx - n_predict - 1,
        )
        turns = conversation.turns[:n_turns]
        answer = Answer()
        try:
            with (
                answer_writer(self.terminal, markdown=self.markdown, status=self._status) as write,
                closed(
                    with_prefill(
                        self.terminal,
                        lambda on_prefill: conversation.aside(
                            [*turns, request], n_predict, on_prefill
                        ),
                    )
                ) as pieces,
            ):
                answer.read(pieces, write)
            self.terminal.end_line()
            n = len(room.questions(turns))
            what = "the first question" if n == 1 else f"the first {n} questions"
            text = answer.text.strip()
            wanted = bool(text) and self.reader.confirm(f"Put this in the place of {what}?")
        except (KeyboardInterrupt, EOFError):
            self.terminal.interrupted()
            self.terminal.end_line()
            wanted = False
        if not wanted:
            self.terminal.note("The conversation is as before.")
            return
        conversation.replace(n_turns, room.ASKED_BEFORE, text)
        self.terminal.note(f"The conversation takes {conversation.n_tokens:,} tokens now.")

    def _status(self) -> str:
        engine = self.conversation.engine
        return (
            status_line(engine.stats, engine.n_ctx)
            if self.stats and not self.terminal.quiet
            else ""
        )

    def answer(self, start: Callable[[OnPrefill], Iterator[Piece]]) -> None:
        """Stream one answer; Ctrl-C ends it and keeps what has come."""
        answer = Answer()
        terminal, conversation = self.terminal, self.conversation
        n_forgotten = conversation.n_forgotten
        try:
            with (
                answer_writer(terminal, markdown=self.markdown, status=self._status) as write,
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
        if n := conversation.n_forgotten - n_forgotten:
            terminal.note(f"the context was full: the oldest {n} turns were forgotten")
        if conversation.draft and conversation.engine.drafting.differs and not self.bits_said:
            terminal.note(OTHER_BITS)
            self.bits_said = True
        if answer.finish_reason == "context":
            engine = conversation.engine
            terminal.warn(f"the context is full: {room.ways_out(engine, engine.n_ctx)}")
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
