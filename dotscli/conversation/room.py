"""What to do when a conversation doesn't fit its context: forget, summarise, or make more room.

Pure decisions about turns and tokens; whoever holds the conversation carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.conversation.messages import Message
    from dotscli.engine import Engine

ANSWER_SHARE = 8  # of the context: what is left free for an answer where turns are forgotten
SUMMARY_TOKENS = 512  # at most, and an eighth of the context
REQUEST = (
    "Summarise our conversation so far, so that it can go on from your summary alone: what was "
    "asked, what was found and decided, names, numbers and code that may be needed again. "
    "Write only the summary."
)
ASKED_BEFORE = "What have we talked about so far?"


def ways_out(engine: Engine, n_tokens: int) -> str:
    """The commands that make room for so many tokens, with what a longer context costs."""
    ways = "/drop forgets the oldest turn, /clear every turn, /summarise shortens the oldest"
    more = engine.longer_context(n_tokens)
    if more:
        price = (more - engine.n_ctx) * engine.token_nbytes
        ways += f"; /ctx {more} makes room for more, for {format_bytes(price)} of memory"
    return ways


def too_long(engine: Engine, n_tokens: int) -> DotsError:
    """What to say of a conversation of so many tokens."""
    return DotsError(
        f"the conversation would take {n_tokens:,} tokens, but the context holds "
        f"{engine.n_ctx:,}, including the answer",
        hint=ways_out(engine, n_tokens),
    )


def questions(turns: Sequence[Message]) -> list[int]:
    """Where among the turns the questions are."""
    return [n for n, turn in enumerate(turns) if turn.role == "user"]


def fewest_forgotten(
    turns: Sequence[Message], n_tokens: Callable[[Sequence[Message]], int], room: int
) -> int:
    """How many of the oldest turns have to go until the rest takes at most `room` tokens.

    Only whole questions with their answers go, and never the last question. 0 where nothing
    helps: the last question alone is too long, or there is no other.

    Args:
        n_tokens: of some turns; asked a few times, since more turns never take fewer tokens.
    """
    starts = questions(turns)[1:]
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if n_tokens(turns[starts[middle] :]) <= room:
            high = middle
        else:
            low = middle + 1
    return starts[low] if low < len(starts) else 0


def to_summarise(
    turns: Sequence[Message], n_tokens: Callable[[Sequence[Message]], int], room: int
) -> int:
    """How many of the oldest turns a summary can take the place of: all that `room` holds.

    Raises:
        DotsError: none.
    """
    ends = [*questions(turns)[1:], len(turns)]
    fitting = [end for end in ends if n_tokens(turns[:end]) <= room]
    if not turns or not fitting:
        reason = "the first question is too long" if turns else "nothing has been asked yet"
        raise DotsError(f"there is nothing that could be summarised: {reason}")
    return fitting[-1]
