"""A few tokens computed with and without hot experts, before the first one that is wanted.

The tokens are the first of an empty context, one at a time, and leave nothing behind: no cache, no
heat. What follows from their times is decided in dotscli/hot/verdict.py.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

from dotscli.engine.decode import Decoder
from dotscli.hot.expert_cache import ExpertCache, Trial
from dotscli.hot.verdict import Comparison

MIN_TOKENS, MAX_TOKENS = 3, 16
LIMIT_S = 0.5  # no further token is begun then; each is computed three times


def compare(hot: ExpertCache, decoder: Decoder, n_vocab: int) -> Comparison:
    """Compare on the hot model's context.

    Raises:
        DotsError: llama.cpp fails.
    """
    began = perf_counter()
    divided: list[float] = []
    on_cpu: list[float] = []
    experts: list[float] = []
    hits = pairs = 0

    def compute(token: int, trial: Trial) -> float:
        hot.set_trial(trial)
        decoder.keep(0)
        start = perf_counter()
        decoder.decode(token)
        return perf_counter() - start

    def measure_divided(token: int) -> None:
        nonlocal hits, pairs
        before = hot.counters()
        divided.append(compute(token, Trial.DIVIDED))
        after = hot.counters()
        hits += after.decode_hits - before.decode_hits
        pairs += after.decode_hits + after.decode_misses
        pairs -= before.decode_hits + before.decode_misses

    def measure_on_cpu(token: int) -> None:
        before = hot.counters().cpu_ns
        on_cpu.append(compute(token, Trial.ON_CPU))
        experts.append((hot.counters().cpu_ns - before) / 1e9)

    ways: list[Callable[[int], None]] = [measure_divided, measure_on_cpu]
    try:
        for number in range(MAX_TOKENS):
            if number >= MIN_TOKENS and perf_counter() - began > LIMIT_S:
                break
            token = n_vocab * (2 * number + 1) // (2 * MAX_TOKENS)  # spread over the vocabulary
            compute(token, Trial.DIVIDED)  # reads its experts from disk, builds the graphs
            for way in ways:
                way(token)
            ways.reverse()
    finally:
        hot.set_trial(Trial.NONE)
        decoder.keep(0)
    return Comparison(median(on_cpu), median(experts), median(divided), hits / max(1, pairs))
