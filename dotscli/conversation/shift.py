"""An answer that goes on where the context is full: behind fewer turns, from where it was.

llama.cpp would move what is in the cache instead, which keeps what was computed with the turns
that are gone. Here the rest is read again, so the answer is one that the shorter conversation
could have got.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from dotscli.conversation.messages import Message
from dotscli.engine.stream import Piece, Stats, joined
from dotscli.terminal.progress import closed

if TYPE_CHECKING:
    from dotscli.engine import Engine


class Shifting(Protocol):
    """What of a conversation this needs."""

    engine: Engine
    n_predict: int

    def encoded(self, turns: Sequence[Message]) -> list[int]:
        """Tokens of turns, ready to be answered."""

    def forgettable(self, turns: Sequence[Message], n_more: int = 0) -> int:
        """How many of them have to go, 0 where nothing helps."""

    def forget(self, n_turns: int) -> None:
        """Leave out the oldest turns from here on."""


def shifted(
    conversation: Shifting,
    turns: list[Message],
    pieces: Iterator[Piece],
    generate: Callable[[list[int], int], Iterator[Piece]],
) -> Iterator[Piece]:
    """The pieces of one answer, however often the context gets full meanwhile.

    Args:
        turns: loses those that are forgotten.
        pieces: of the answer as it begins.
        generate: from tokens and the number of tokens to make at most (-1: any) to the pieces of
            what follows them.
    """
    made: list[int] = []  # tokens of the answer
    earlier = Stats()
    forgotten = 1
    while forgotten:
        with closed(pieces):
            for piece in pieces:
                if piece.token is not None:
                    made.append(piece.token)
                if piece.finish_reason is None:
                    yield piece
                    continue
                stats = joined(earlier, piece.stats or Stats())
                full = piece.finish_reason == "context"
                forgotten = conversation.forgettable(turns, len(made)) if full else 0
                if not forgotten:
                    yield dataclasses.replace(piece, stats=stats)
                    return
                whole = conversation.engine.vocabulary.whole(made)
                # a character that isn't complete yet is made anew
                text = piece.text if whole == made else piece.text.rstrip("\ufffd")
                yield Piece(text)
                made, earlier = whole, stats
        conversation.forget(forgotten)
        del turns[:forgotten]
        left = conversation.n_predict - len(made) if conversation.n_predict >= 0 else -1
        pieces = generate([*conversation.encoded(turns), *made], left)
