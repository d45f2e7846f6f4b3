"""Tokens guessed ahead from what has been said: evaluated in one batch, kept where they come true.

A guess is what followed the last time that the same few tokens stood in the context. Whether
guessing pays depends on what a batch of two to five tokens costs here (dense weights are read once
for all, experts hardly) and on how often guesses come true. Both are measured while answering;
guesses that aren't evaluated are judged as well, which costs nothing. Every token is still drawn
from the model's own distribution: a wrong guess costs time and changes nothing. It computes no
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dotscli.errors import usage

if TYPE_CHECKING:
    from dotscli.engine.decode import Decoder

MOST = 4  # tokens ahead: beyond, kernels change their order even where they don't below
LONGEST, SHORTEST = 4, 2  # tokens that a guess goes by
GAIN = 1.05  # how much faster it has to be
FORGOTTEN = 1024  # tokens after which a measured cost is measured again, sooner
SURE = 8  # if it was measured less often than this
# What each further token of a batch costs until that has been measured, in single tokens: of
# dots.llm1 in main memory 6.0 of 9.6 GB are read once for all; from the disk nothing is.
IN_MEMORY, FROM_DISK = 0.35, 1.0
_SHARE = 0.1  # of the newest measurement
_FIRST_RATE = 0.3  # of guesses that come true, before any has been judged


def draft_length(text: str) -> int | None:
    """What --draft says: tokens ahead at most, 0 for none, None for as many as pay.

    Raises:
        DotsError: it is neither auto, off nor a number in range (exit status 2).
    """
    word = text.strip().lower()
    if word == "auto":
        return None
    if word == "off":
        return 0
    if word.isdecimal() and int(word[:3]) <= MOST:
        return int(word)
    raise usage(f"invalid --draft {text[:40]!r}", f"give auto, off or 0 to {MOST}")


class Drafting:
    """What is known about guessing with one loaded model.

    Args:
        from_disk: whether experts are read when they are needed.
    """

    def __init__(self, decoder: Decoder, *, from_disk: bool) -> None:
        self._decoder = decoder
        self.costs = Costs(FROM_DISK if from_disk else IN_MEMORY)

    def begin(self, length: int | None, *, repeatable: bool) -> Drafts | None:
        """The guesses of an answer that goes on from what is in the cache; None for none."""
        if length == 0:
            return None
        return Drafts(
            self._decoder.cached, length, self.costs, self._decoder.same_bits, repeatable=repeatable
        )

    @property
    def differs(self) -> bool:
        """Whether tokens that are evaluated together have been seen to get other logits."""
        return False in self.costs.same_bits.values()


class Lookup:
    """Where the last few tokens have stood before; only the latest place counts."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST + 1)]
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token."""
        tokens = self.tokens
        for n in range(SHORTEST, LONGEST + 1):
            if len(tokens) >= n:
                self._after[n][tuple(tokens[-n:])] = len(tokens)
        tokens.append(token)

    def find(self, most: int) -> tuple[int, list[int]]:
        """What followed, at most so many tokens, and how many tokens it goes by (0: nothing)."""
        tokens = self.tokens
        for n in range(LONGEST, SHORTEST - 1, -1):
            at = self._after[n].get(tuple(tokens[-n:]))
            if at is not None:
                found: list[int] = []
                for i in range(at, at + most):  # what repeats itself goes on beyond the end
                    found.append(tokens[i] if i < len(tokens) else found[i - len(tokens)])
                return n, found
        return 0, []


class Drafts:
    """The guesses of one answer.

    Args:
        tokens: of the context.
        length: tokens ahead, None for as many as pay.
        costs: of batches here; kept from answer to answer.
        same_bits: whether a batch computes what single tokens do, tried with these; asked before
            the first guess is evaluated.
        repeatable: whether the same call has to give the same answer. Where a batch has other
            bits, only a given length is used then: else it would depend on the time that batches
            take.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        length: int | None,
        costs: Costs,
        same_bits: Callable[[list[int]], bool],
        *,
        repeatable: bool = True,
    ) -> None:
        self._lookup = Lookup(tokens)
        self._length = length
        self._costs = costs
        self._same_bits = same_bits
        self._repeatable = repeatable
        self._rates = [_FIRST_RATE] * (LONGEST + 1)  # by the tokens that a guess goes by
        self._guess: tuple[int, int] | None = None  # of the next token, and what it goes by
        self.n_drafted = self.n_accepted = 0

    def said(self, token: int) -> None:
        """The next token of the answer, guessed or not."""
        if self._guess is not None:
            guessed, n = self._guess
            self._rates[n] += _SHARE * ((guessed == token) - self._rates[n])
        self._lookup.add(token)
        n, found = self._lookup.find(1)
        self._guess = (found[0], n) if found else None
        self._costs.passed()

    def took(self, n_tokens: int, seconds: float) -> None:
        """A batch of so many tokens, and the time that it took."""
        self._costs.took(n_tokens, seconds)

    def ahead(self, most: int) -> list[int]:
        """Tokens to evaluate with the one that was said last; none where that doesn't pay."""
        n, found = self._lookup.find(min(most, MOST if self._length is None else self._length))
        if found and self._length is None:
            found = found[: self._costs.best(self._rates[n], len(found))]
        decides = self._length is None
        if found and (self._repeatable or not decides) and not self._bits(most, found) and decides:
            return []
        self.n_drafted += len(found)
        return found

    def _bits(self, most: int, found: list[int]) -> bool:
        """Whether a batch here computes what single tokens do; kernels go by the context's size."""
        known, tokens = self._costs.same_bits, self._lookup.tokens
        size = len(tokens).bit_length()
        if size not in known:
            if most < MOST:
                return False
            known[size] = self._same_bits([tokens[-1], *found, *tokens[-1:] * MOST][: MOST + 1])
        return known[size]


class Costs:
    """What batches of a few tokens cost on this machine, measured as they come.

    Args:
        guessed: cost of each further token, in single tokens, until it has been measured.

    `same_bits`: whether they compute what single tokens do, by the bits of a context's length.
    """

    def __init__(self, guessed: float) -> None:
        self.same_bits: dict[int, bool] = {}
        self._guessed = guessed
        self._seconds: dict[int, float] = {}
        self._age: dict[int, int] = {}
        self._times: dict[int, int] = {}

    def took(self, n_tokens: int, seconds: float) -> None:
        """A batch of so many tokens, and the time that it took."""
        known = self._seconds.get(n_tokens)
        self._seconds[n_tokens] = seconds if known is None else known + _SHARE * (seconds - known)
        self._age[n_tokens] = 0
        self._times[n_tokens] = self._times.get(n_tokens, 0) + 1

    def passed(self) -> None:
        """Another token has been said; what was measured long ago doesn't count any more."""
        for n in list(self._age):
            self._age[n] += 1
            if n > 1 and self._age[n] * SURE > FORGOTTEN * min(self._times[n], SURE):
                del self._age[n], self._times[n], self._seconds[n]

    def best(self, rate: float, most: int) -> int:
        """How many tokens to evaluate ahead, if guesses come true at this rate; 0 for none.

        Until any batch has been measured it is one at most: what that costs says what more would.
        """
        single = self._seconds.get(1)
        if not single:
            return 0
        each = [(s / single - 1) / (n - 1) for n, s in self._seconds.items() if n > 1]
        further = max(0.0, sum(each) / len(each)) if each else self._guessed
        most = most if each else min(most, 1)
        best, found = GAIN / single, 0
        expected, chance = 1.0, 1.0
        for length in range(1, most + 1):
            chance *= rate
            expected += chance
            seconds = self._seconds.get(length + 1, single * (1 + further * length))
            if expected / seconds > best:
                best, found = expected / seconds, length
        return found
