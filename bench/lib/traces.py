"""Synthetic routing traces, and traces that the backend wrote.

A router's scores are drawn as a sum: how popular an expert is, per domain; a part that drifts from
token to token and makes the same experts come again; and noise of each token alone. The top scores
win. Skew and locality are set by the weights of the parts. Nothing here says how the real model
routes: no trace of it has been published.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Router:
    """One kind of routing.

    Attributes:
        popular: weight of an expert's popularity in its domain.
        drift: weight of the drifting part; memory: how much of it the next token keeps.
        noise: weight of what is new in each token.
        domains: number of domains; `stay` tokens of each before the next comes.
    """

    name: str
    why: str
    popular: float = 0.0
    drift: float = 0.0
    memory: float = 0.0
    noise: float = 1.0
    domains: int = 1
    stay: int = 1 << 30


ROUTERS = (
    Router("uniform", "no expert preferred, no memory: what a cache can't help"),
    Router(
        "flat",
        "balanced by a bias and a sequence loss, as DeepSeek's and dots': weak skew, little memory",
        popular=0.2, drift=0.3, memory=0.8,
    ),
    Router(
        "recent",
        "a softmax router such as Qwen3-30B's: nearly half of the experts come again at once",
        popular=0.6, drift=1.1, memory=0.95, noise=0.6,
    ),
    Router(
        "domains",
        "skew that differs between four domains, which change every 250 tokens",
        popular=0.9, drift=0.4, memory=0.9, noise=0.7, domains=4, stay=250,
    ),
    Router(
        "specialists",
        "the same with experts that are used by nearly every token of their domain",
        popular=2.0, drift=0.4, memory=0.9, noise=0.5, domains=4, stay=250,
    ),
)  # fmt: skip


def synthetic(
    router: Router,
    *,
    n_tokens: int = 2000,
    n_layers: int = 61,
    n_experts: int = 128,
    n_used: int = 6,
    seed: int = 0,
    domains: tuple[int, ...] | None = None,
) -> Ints:
    """A trace int16 [tokens, layers, n_used], best first.

    Args:
        seed: of the tokens; the popularity of the experts is the same for every seed.
        domains: the domains to go through, in order; None takes them all in turn.
    """
    fixed = np.random.default_rng(1)
    shape = (n_layers, n_experts)
    popularity = router.popular * fixed.standard_normal((router.domains, *shape), np.float32)
    random = np.random.default_rng(1000 + seed)
    order = domains or tuple(range(router.domains))
    drift = random.standard_normal(shape, np.float32)
    keep, fresh = np.float32(router.memory), np.float32((1 - router.memory**2) ** 0.5)
    trace = np.empty((n_tokens, n_layers, n_used), np.int16)
    for t in range(n_tokens):
        scores = random.standard_normal(shape, np.float32) * np.float32(router.noise)
        if router.drift:
            drift = keep * drift + fresh * random.standard_normal(shape, np.float32)
            scores += np.float32(router.drift) * drift
        scores += popularity[order[t // router.stay % len(order)]]
        best = np.argpartition(scores, -n_used, axis=1)[:, -n_used:]
        rank = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        trace[t] = np.take_along_axis(best, rank, axis=1)
    return trace


def repeated(trace: Ints) -> float:
    """Part of a token's experts that the token before used too, in the same layer."""
    again = trace[1:, :, :, None] == trace[:-1, :, None, :]
    return float(again.any(axis=3).mean())


def top_share(trace: Ints, n_experts: int, share: float) -> tuple[float, float]:
    """Calls that the hottest experts of the first half take: in that half, and in the other."""
    half = len(trace) // 2
    n = max(1, round(share * n_experts))
    seen = []
    tables = []
    for part in (trace[:half], trace[half:]):
        table = np.zeros((trace.shape[1], n_experts))
        for layer in range(trace.shape[1]):
            table[layer] = np.bincount(part[:, layer].ravel(), minlength=n_experts)
        tables.append(table)
    hottest = np.argsort(-tables[0], axis=1)[:, :n]
    for table in tables:
        seen.append(float(np.take_along_axis(table, hottest, axis=1).sum() / table.sum()))
    return seen[0], seen[1]
