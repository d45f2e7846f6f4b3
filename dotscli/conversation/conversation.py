"""A conversation: messages in, pieces of the answer out, and what has been said so far.

A turn is taken into the conversation only when its question fits the context, and an answer that
was broken off stays as far as it came. It knows no terminal and no commands; the engine it is
given does the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dotscli.conversation import room
from dotscli.conversation.messages import Message, OnPrefill, Recorder, encode
from dotscli.conversation.shift import shifted
from dotscli.engine.sampling import MAX_SEED, Sampling
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError
from dotscli.models.template import DOTS1_TEMPLATE
from dotscli.terminal.progress import closed

if TYPE_CHECKING:
    from dotscli.engine import Engine


class Conversation:
    """Messages and how they are answered. `sampling`, `n_predict` and `stop` may be changed.

    `recorder`: who gets to know of every change, None for nobody. `shift`: forget the oldest turns
    where the context is full; `n_forgotten` counts them. `draft`: tokens to guess ahead, None for
    as many as pay.
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
        shift: bool = False,
        draft: int | None = 0,
    ) -> None:
        self.engine = engine
        self.shift = shift
        self.draft = draft
        self.n_forgotten = 0
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
        return room.questions(self.turns)

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
        tokens = self.encoded(turns)
        forgotten = 0
        if len(tokens) >= self.engine.n_ctx and self.shift:
            forgotten = self.forgettable(turns)
            tokens = self.encoded(turns[forgotten:])
        if len(tokens) >= self.engine.n_ctx:
            raise room.too_long(self.engine, len(tokens))
        repeatable = self.sampling.repeatable
        sampling = self.sampling.with_seed()

        def generate(tokens: list[int], n_predict: int) -> Iterator[Piece]:
            return self.engine.generate(
                tokens, sampling, n_predict=n_predict, stop=self.stop,
                on_prefill=on_prefill, draft=self.draft, repeatable=repeatable,
            )  # fmt: skip

        pieces = generate(tokens, self.n_predict)
        self.last_seed = sampling.seed
        self.forget(forgotten)
        turns = turns[forgotten:]
        if self.shift and not sampling.grammar:  # half a text of a grammar can't be gone on with
            pieces = shifted(self, turns, pieces, generate)
        return self._recorded(turns, len(tokens), pieces)

    def aside(
        self, turns: Sequence[Message], n_predict: int, on_prefill: OnPrefill | None = None
    ) -> Iterator[Piece]:
        """An answer to other turns, which doesn't become part of the conversation.

        Raises:
            DotsError: they don't fit the context.
        """
        tokens = self.encoded(turns)
        if len(tokens) >= self.engine.n_ctx:
            raise room.too_long(self.engine, len(tokens))
        return self.engine.generate(
            tokens, self.sampling.with_seed(), n_predict=n_predict, on_prefill=on_prefill
        )

    def n_tokens_of(self, turns: Sequence[Message]) -> int:
        """Tokens that these turns take behind the system prompt, ready to be answered."""
        return len(self.encoded(turns))

    def replace(self, n_turns: int, question: str, answer: str) -> None:
        """Put one question and its answer in the place of the oldest turns."""
        rest = self.turns[n_turns:]
        self.turns = [Message("user", question), Message("assistant", answer), *rest]
        self.n_tokens = self.n_tokens_of(self.turns)
        if self.recorder is not None:
            for n, turn in enumerate(self.turns):
                if turn.role == "user":
                    self.recorder.asked(n, turn.content)
                else:
                    self.recorder.answered(turn.content, turn.complete)

    def encoded(self, turns: Sequence[Message]) -> list[int]:
        """Tokens of these turns behind the system prompt, ready to be answered."""
        system = [Message("system", self.system)] if self.system else []
        return encode(self.engine, self.template, [*system, *turns])

    def forgettable(self, turns: Sequence[Message], n_more: int = 0) -> int:
        """Turns that have to go so that the last question, `n_more` tokens and an answer fit."""
        n_ctx = self.engine.n_ctx
        free = n_ctx - n_ctx // room.ANSWER_SHARE - n_more
        return room.fewest_forgotten(turns, self.n_tokens_of, free)

    def forget(self, n_turns: int) -> None:
        """Leave out the oldest turns from here on."""
        self._cut(0, n_turns)
        self.n_forgotten += n_turns

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
