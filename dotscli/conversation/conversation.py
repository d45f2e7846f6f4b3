"""A conversation: messages in, pieces of the answer out, and what has been said so far.

A turn is taken into the conversation only when its question fits the context, and an answer that
was broken off stays as far as it came. It knows no terminal and no commands; the engine it is
given does the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dotscli.engine.sampling import MAX_SEED, Sampling
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError
from dotscli.models.template import DOTS1_TEMPLATE, render, segments
from dotscli.terminal.progress import closed

if TYPE_CHECKING:
    from dotscli.engine import Engine

OnPrefill = Callable[[int, int], None]


@dataclass(frozen=True)
class Message:
    """What one side said; `complete` is False for an answer that was broken off."""

    role: str
    content: str
    complete: bool = True


def encode(engine: Engine, template: str, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, ready to be answered.

    Tags that are part of a message (somebody pasted `<|endofuserprompt|>`) become plain text, so
    no message can end its own turn. Without such a tag the text is tokenized as a whole, as in
    training.

    Raises:
        DotsError: the template fails, or rewrites messages so that a tag in one can't be told
            from its own.
    """
    plain = [{"role": message.role, "content": message.content} for message in messages]
    eos, bos = engine.eos_token, engine.bos_token
    tagged = [
        message
        for message in messages
        if engine.tokenize(message.content, parse_special=True)
        != engine.tokenize(message.content, parse_special=False)
    ]
    if not tagged:
        text = render(template, plain, eos_token=eos, bos_token=bos)
        return engine.tokenize(text, parse_special=True)
    found = segments(template, plain, eos_token=eos, bos_token=bos)
    if found is None:
        raise DotsError(
            "this model's chat template rewrites messages, so the text of a control token in yours "
            f"can't be told from a real one: {_around_tag(tagged[0].content)}",
            hint="spell the token differently, or use --no-template",
        )
    tokens: list[int] = []
    for segment in found:
        tokens += engine.tokenize(segment.text, parse_special=not segment.quoted)
    return tokens


def _around_tag(content: str) -> str:
    start = max(content.find("<"), 0)
    return repr(content[start : start + 30])


class Recorder(Protocol):
    """Gets to know what happens in a conversation, as it happens."""

    def system(self, text: str) -> None:
        """Another system prompt."""

    def asked(self, kept: int, question: str) -> None:
        """A question after the first `kept` turns, which takes the place of those behind them."""

    def piece(self, text: str) -> None:
        """A part of its answer."""

    def answered(self, text: str, complete: bool) -> None:
        """All of it. Without a word of an answer the turns are as before the question."""

    def cut(self, start: int, stop: int) -> None:
        """Turns were taken away."""


class Conversation:
    """Messages and how they are answered. `sampling`, `n_predict` and `stop` may be changed.

    `recorder`: who gets to know of every change, None for nobody.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        *,
        system: str = "",
        n_predict: int = -1,
        stop: Sequence[str] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.engine = engine
        self.recorder = recorder
        self.sampling = sampling
        self.n_predict = n_predict
        self.stop = tuple(stop)
        self._system = ""
        self.system = system
        self.template = engine.chat_template or DOTS1_TEMPLATE
        self.turns: list[Message] = []
        self.last_seed = -1
        self.n_tokens = 0

    @property
    def system(self) -> str:
        """The system prompt, "" for none."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        if self.recorder is not None:
            self.recorder.system(text)

    def restore(self, system: str, turns: Sequence[Message]) -> None:
        """Go on with what has been said elsewhere; nothing of it is told to the recorder.

        Raises:
            DotsError: the template can't put it into words; nothing has changed then.
        """
        messages = [Message("system", system)] * bool(system) + list(turns)
        # The tags that ask for an answer count as well: a few tokens too many until the next one.
        n_tokens = len(encode(self.engine, self.template, messages)) if turns else 0
        self._system, self.turns, self.n_tokens = system, list(turns), n_tokens

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if there is one, and the turns."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.turns]

    def send(self, text: str, on_prefill: OnPrefill | None = None) -> Iterator[Piece]:
        """Say something and get the answer piece by piece.

        Closing the iterator or a KeyboardInterrupt ends the answer; it stays as far as it came.
        A question whose answer was broken off before its first character is taken back.

        Raises:
            DotsError: the conversation would not fit the context; nothing has changed then.
        """
        return self._answer([*self.turns, Message("user", text)], on_prefill)

    def ask_again(self, text: str, on_prefill: OnPrefill | None = None) -> Iterator[Piece]:
        """Put another question in the place of the last one, whose answer goes.

        Raises:
            DotsError: nothing has been asked yet, or it would not fit the context.
        """
        return self._answer([*self.turns[: self._last()], Message("user", text)], on_prefill)

    @property
    def last_question(self) -> str:
        """What was asked last.

        Raises:
            DotsError: nothing has been asked yet.
        """
        return self.turns[self._last()].content

    def _last(self) -> int:
        asked = self.asked
        if not asked:
            raise DotsError("there is no question to answer again yet")
        return asked[-1]

    @property
    def asked(self) -> list[int]:
        """Where among the turns the questions are."""
        return [n for n, turn in enumerate(self.turns) if turn.role == "user"]

    def regenerate(self, on_prefill: OnPrefill | None = None) -> Iterator[Piece]:
        """Answer the last question again. With a fixed seed, the next seed is taken.

        Raises:
            DotsError: nothing has been asked yet.
        """
        last = self._last()
        if self.sampling.seed >= 0:
            following = (self.sampling.seed + 1) % (MAX_SEED + 1)
            self.sampling = dataclasses.replace(self.sampling, seed=following)
        return self._answer(self.turns[: last + 1], on_prefill)

    def _answer(self, turns: list[Message], on_prefill: OnPrefill | None) -> Iterator[Piece]:
        system = [Message("system", self.system)] if self.system else []
        tokens = encode(self.engine, self.template, [*system, *turns])
        n_ctx = self.engine.n_ctx
        if len(tokens) >= n_ctx:
            more = self.engine.longer_context(len(tokens))
            raise DotsError(
                f"the conversation would take {len(tokens):,} tokens, but the context holds "
                f"{n_ctx:,}, including the answer",
                hint="/drop forgets the oldest turn, /clear every turn"
                + (f"; `dots chat -c {more}` makes room for more" if more else ""),
            )
        sampling = self.sampling.with_seed()
        pieces = self.engine.generate(
            tokens, sampling, n_predict=self.n_predict, stop=self.stop, on_prefill=on_prefill
        )
        self.last_seed = sampling.seed
        return self._recorded(turns, len(tokens), pieces)

    def _recorded(
        self, turns: list[Message], n_prompt: int, pieces: Iterator[Piece]
    ) -> Iterator[Piece]:
        text, complete = "", False
        recorder = self.recorder
        if recorder is not None:
            recorder.asked(len(turns) - 1, turns[-1].content)
        try:
            with closed(pieces):
                for piece in pieces:
                    text += piece.text
                    if recorder is not None:
                        recorder.piece(piece.text)
                    complete = complete or piece.finish_reason in ("stop", "length")
                    yield piece
        finally:
            if text or complete:
                self.turns = [*turns, Message("assistant", text, complete)]
                made = self.engine.stats.completion_tokens
                self.n_tokens = min(n_prompt + made, self.engine.n_ctx)
                if recorder is not None:
                    recorder.answered(text, complete)

    def clear(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._cut(0, len(self.turns))
        self.n_tokens = 0

    def undo(self) -> bool:
        """Take back the last question and its answer; False if there was none."""
        return self._remove(-1)

    def drop(self) -> bool:
        """Forget the oldest question and its answer; False if there was none."""
        return self._remove(0)

    def _remove(self, which: int) -> bool:
        asked = self.asked
        if not asked:
            return False
        start = asked[which]
        end = start + 1
        while end < len(self.turns) and self.turns[end].role != "user":
            end += 1
        self._cut(start, end)
        self.n_tokens = 0 if not self.turns else self.n_tokens
        return True

    def _cut(self, start: int, stop: int) -> None:
        del self.turns[start:stop]
        if self.recorder is not None and stop > start:
            self.recorder.cut(start, stop)
