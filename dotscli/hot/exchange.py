"""Who takes whose place while tokens are computed: a few exchanges at a time, those that repay.

How often an expert will be used is guessed from two decayed frequencies, a slow and a fast one. An
exchange repays itself if the expert that comes in is used often enough more than the one that goes:
once within a horizon where an upload costs what a miss costs, and with the root of its price where
it costs more, since a dearer upload may take longer to repay itself. The parameters were chosen by
bench/hot/routing.py (docs/hot-policy.md). Nothing here talks to a backend: counts go in, exchanges
come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """The parameters of the policy.

    Attributes:
        slow, fast: half-lives of the two frequencies, in tokens.
        weight: of the fast frequency; the slow one has the rest.
        horizon: tokens within which an exchange of price 1 has to repay itself.
        limit: exchanges of one layer in one step.
    """

    slow: float = 512
    fast: float = 8
    weight: float = 0.7
    horizon: float = 6
    limit: int = 2


@dataclass(frozen=True)
class Exchange:
    """In row `row` (the number of the MoE layer, from 0) `into` takes the place of `out`."""

    row: int
    out: int
    into: int


class Frequencies:
    """Uses per token of every expert, in the past that two half-lives make.

    Args:
        heat: [layers, experts] counts known before, of any scale; zeros if nothing is known.
        n_used: experts that a token uses in a layer.
    """

    def __init__(self, heat: Floats, n_used: int, rule: Rule) -> None:
        total = heat.sum(axis=1, keepdims=True)
        self.rule = rule
        self.slow: Floats = heat / np.where(total > 0, total, 1) * n_used
        self.fast = self.slow.copy()

    def observe(self, counts: Floats, n_tokens: int = 1) -> None:
        """Take in counts [layers, experts] of the last n_tokens."""
        for frequency, half_life in ((self.slow, self.rule.slow), (self.fast, self.rule.fast)):
            keep = 0.5 ** (n_tokens / half_life)
            np.multiply(frequency, keep, out=frequency)
            np.add(frequency, (1 - keep) / n_tokens * counts, out=frequency)

    def score(self) -> Floats:
        """The guess at the frequency from here on."""
        weight = self.rule.weight
        guess: Floats = (1 - weight) * self.slow + weight * self.fast
        return guess


def exchanges(
    score: Floats, resident: Bools, rule: Rule, budget: int, price: float = 1.0
) -> list[Exchange]:
    """What to exchange now, the most promising first in each round over the layers.

    Args:
        score: [layers, experts] expected uses per token.
        resident: the same shape; no expert beyond those and their slots is touched.
        budget: exchanges over all layers at most: what can be uploaded before the next step.
        price: an upload in misses that the CPU computes meanwhile; below 1 counts as 1.
    """
    least = math.sqrt(max(price, 1.0)) / rule.horizon
    inside = np.where(resident, score, np.inf)
    outside = np.where(resident, -np.inf, score)
    rows = np.arange(len(score))
    found: list[Exchange] = []
    for _ in range(min(rule.limit, score.shape[1])):
        coldest, hottest = inside.argmin(axis=1), outside.argmax(axis=1)
        # A layer with nobody inside or outside has a gain of minus infinity.
        gain = outside[rows, hottest] - inside[rows, coldest]
        chosen = np.argsort(-gain, kind="stable")[: max(0, budget - len(found))]
        chosen = chosen[gain[chosen] > least]
        if not len(chosen):
            break
        out, into = coldest[chosen], hottest[chosen]
        inside[chosen, out], outside[chosen, into] = np.inf, -np.inf
        found += map(Exchange, chosen.tolist(), out.tolist(), into.tolist())
    return found
