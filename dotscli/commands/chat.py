"""`dots chat`: load a model, hold a conversation, and load again where that is wanted.

What happens in between is in `dotscli.commands.chat_loop`. A model or a context that can't be
loaded is said, and the conversation goes on with what was there.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.commands.chat_loop import Loop, Reload
from dotscli.commands.chat_session import (
    WRITING,
    Wanted,
    keep,
    keep_states,
    model_of,
    wanted_after,
    wanted_session,
)
from dotscli.commands.model import open_engine, resolve
from dotscli.commands.settings import (
    engine_options,
    grammar_for,
    sampling_for,
    stop_strings,
    system_prompt,
)
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.editor import at_editor, reader_for
from dotscli.conversation.keys import PROMPT
from dotscli.conversation.slash import gauge
from dotscli.engine.draft import draft_length
from dotscli.engine.sampling import check_n_predict
from dotscli.errors import DotsError
from dotscli.folders import heat_folder
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.chat import SessionFlags
from dotscli.options.engine import EngineFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import argument

if TYPE_CHECKING:
    from dotscli.engine import Engine, EngineOptions


@dataclass(frozen=True)
class Begin:
    """What is loaded, and which session goes on with it."""

    path: Path
    options: EngineOptions
    wanted: Wanted

    def after(self, reload: Reload, wanted: Wanted) -> Begin:
        """The same with what a command wants changed."""
        n_ctx = reload.n_ctx or self.options.n_ctx
        options = dataclasses.replace(self.options, n_ctx=n_ctx)
        return Begin(reload.path or self.path, options, wanted)


class Chat:
    """The flags of one call, checked, and what goes along from one load to the next."""

    def __init__(
        self,
        terminal: Terminal,
        session: SessionFlags,
        sampling: SamplingFlags,
        answer: AnswerFlags,
    ) -> None:
        self.terminal = terminal
        self.session = session
        self.flags = sampling
        # what is out of range is said before anything is loaded
        sampling_for(sampling, {})
        check_n_predict(answer.n_predict)
        self.n_predict = answer.n_predict
        self.draft = draft_length(answer.draft)
        self.stop = stop_strings(answer)
        self.system = system_prompt(terminal, answer)
        self.grammar = grammar_for(terminal, answer)
        self.at_keyboard = at_editor(terminal)
        self.stats = answer.stats if answer.stats is not None else terminal.stderr_is_tty
        self.markdown = self.grammar is None if answer.markdown is None else answer.markdown
        self.last: Loop | None = None

    def run(self, begin: Begin, first: str) -> int:
        """Until the conversation is over; the exit status.

        Raises:
            DotsError: the first load fails.
        """
        before: Begin | None = None
        while True:
            with ExitStack() as stack:
                try:
                    loop = self._loop(stack, begin)
                except DotsError as error:
                    if before is None:
                        raise
                    self.terminal.error(error.message, error.hint)
                    begin, before = before, None
                    continue
                status = loop.run(first)
                engine = loop.conversation.engine
                if engine.states and engine.states.writing:
                    self.terminal.note(WRITING)
                wanted = wanted_after(begin.wanted, loop.journal)
            if loop.reload is None:
                return status
            self.last, first = loop, ""
            before = Begin(begin.path, begin.options, wanted)
            begin = before.after(loop.reload, wanted)

    def _loop(self, stack: ExitStack, begin: Begin) -> Loop:
        terminal = self.terminal
        loaded = stack.enter_context(open_engine(terminal, begin.path, begin.options))
        conversation = self._conversation(loaded, begin.path)
        journal = keep(terminal, begin.wanted, conversation, begin.path)
        if journal is not None:
            stack.enter_context(closing(journal))
        first_state = keep_states(terminal, loaded) if journal is not None else None
        sessions = begin.wanted.sessions
        reader = reader_for(
            terminal,
            lambda: f"{gauge(conversation)} · /help",
            lambda: [summary.name for summary in sessions.all()] if sessions else [],
        )
        if self.at_keyboard:
            if self.last is None:
                name = loaded.metadata.get("general.name", begin.path.stem)
                terminal.note(f"{name}: /help lists the commands, Ctrl-D leaves")
            stack.enter_context(terminal.keys_kept())
        last = self.last
        if last is not None:
            last.attached.moved(loaded)
        return Loop(
            terminal, conversation, reader, lambda name: find_model(terminal, name),
            stats=last.stats if last else self.stats,
            markdown=last.markdown if last else self.markdown,
            journal=journal, first_state=first_state, attached=last.attached if last else None,
        )  # fmt: skip

    def _conversation(self, engine: Engine, path: Path) -> Conversation:
        """A new one, with all that was said to the model before."""
        terminal, last = self.terminal, self.last.conversation if self.last else None
        if last is not None and last.engine.path == path:
            sampling = last.sampling
        else:
            sampling = sampling_for(
                self.flags, engine.metadata, self.grammar,
                lambda text: terminal.warn(f"{path}: {text}"),
            )  # fmt: skip
        conversation = Conversation(
            engine, sampling, system=self.system,
            n_predict=last.n_predict if last else self.n_predict,
            stop=last.stop if last else self.stop, shift=self.session.context_shift,
            draft=self.draft,
        )  # fmt: skip
        if last is not None:
            conversation.restore(last.system, last.turns)
        return conversation


def find_model(terminal: Terminal, name: str) -> Path:
    """The file of a model that may be loaded.

    Raises:
        DotsError: there is none, or it is not one of dots.
    """
    path = resolve(name, terminal)
    check_dots1(read_gguf(path))
    return path


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
    chat = Chat(terminal, session, sampling, answer)
    wanted = wanted_session(terminal, session, at_keyboard=chat.at_keyboard)
    path = resolve(model_of(wanted, model), terminal)
    first = argument(text or "").strip()
    if first and chat.at_keyboard:
        terminal.note(f"{PROMPT}{first}")
    return chat.run(Begin(path, options, wanted), first)
