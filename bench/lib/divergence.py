"""How far a quantized model's predictions are from the reference's, token by token.

A text is cut into chunks of CHUNK tokens, each evaluated from an empty cache; the second half of a
chunk is scored, as llama-perplexity does, so that every prediction has some context. Uncertainties
are bootstraps over chunks: tokens of one chunk are no independent draws. Knows nothing of recipes
and files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.engine import Engine, EngineOptions

CHUNK = 512
FIRST = CHUNK // 2  # position whose prediction is the first that counts
N_SCORED = CHUNK - 1 - FIRST
RESAMPLES = 500

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], np.floating]


@dataclass(frozen=True)
class Scores:
    """What one model says about one text; arrays (n_chunks, N_SCORED).

    Attributes:
        nll: -ln of the probability of the token that follows.
        kl: Kullback-Leibler divergence from the reference's distribution to this one's, in nats.
        same: 1 where both have the same most probable token, else 0.
    """

    nll: Floats
    kl: Floats
    same: Floats

    def save(self, path: Path) -> None:
        np.savez_compressed(path, nll=self.nll, kl=self.kl, same=self.same)

    @classmethod
    def load(cls, path: Path) -> Scores:
        with np.load(path) as file:
            return cls(file["nll"], file["kl"], file["same"])


def open_engine(path: Path, threads: int) -> Engine:
    """The model with an f32 cache and plain attention: nothing is rounded but the weights."""
    options = EngineOptions(
        n_ctx=2 * CHUNK,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=0,
        cache_type_k="f32",
        cache_type_v="f32",
        flash_attn="off",
    )
    return Engine.load(path, options)


def chunks_of(engine: Engine, text: str, most: int) -> list[list[int]]:
    """The first chunks of a text, whole ones only; names of control tokens are tokens."""
    tokens = engine.tokenize(text, parse_special=True)
    return [tokens[at : at + CHUNK] for at in range(0, len(tokens) - CHUNK + 1, CHUNK)][:most]


def log_probabilities(engine: Engine, chunk: Sequence[int]) -> Floats:
    """ln p after each scored position of a chunk: (N_SCORED, n_vocab)."""
    logits = engine.logits(chunk)[FIRST : CHUNK - 1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def reference_log_probabilities(
    path: Path, text: str, most: int, threads: int
) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Chunks of a text and the reference's ln p: float32 (n_chunks, N_SCORED, n_vocab)."""
    with open_engine(path, threads) as engine:
        chunks = chunks_of(engine, text, most)
        return chunks, np.stack([log_probabilities(engine, c).astype(np.float32) for c in chunks])


def score(
    path: Path, chunks: Sequence[Sequence[int]], reference: NDArray[np.float32], threads: int
) -> Scores:
    """One model against the reference on the same chunks."""
    nll, kl, same = np.empty((3, len(chunks), N_SCORED))
    with open_engine(path, threads) as engine:
        for i, chunk in enumerate(chunks):
            theirs, ours = reference[i].astype(np.float64), log_probabilities(engine, chunk)
            nll[i] = -ours[np.arange(N_SCORED), chunk[FIRST + 1 :]]
            kl[i] = (np.exp(theirs) * (theirs - ours)).sum(-1)
            same[i] = theirs.argmax(-1) == ours.argmax(-1)
    return Scores(nll, kl, same)


def uncertainty(statistic: Statistic, values: Floats) -> float:
    """Standard deviation of a statistic when whole chunks are drawn again."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
    return float(np.std([statistic(values[draw]) for draw in draws]))


def ratio(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Mean of ours over mean of theirs, chunk by chunk the same text, and its uncertainty."""
    both = np.stack([ours.mean(-1), theirs.mean(-1)], -1)

    def quotient(values: Floats) -> np.floating:
        return np.divide(*values.mean(0))

    return float(quotient(both)), uncertainty(quotient, both)


def perplexity(nll: Floats) -> np.floating:
    """exp of the mean."""
    return np.exp(nll.mean())


def tail(kl: Floats) -> np.floating:
    """The value that one token in a thousand exceeds."""
    return np.quantile(kl, 0.999)
