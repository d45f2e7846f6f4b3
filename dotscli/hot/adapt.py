"""Adapts the residents of a loaded model to what it computes, in a thread of its own.

Who takes whose place is decided in exchange.py. Here the backend's counters become frequencies, and
exchanges become uploads, as many as fit into a share of the time that tokens take; they go on
beside the computing. A step can also be taken by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import perf_counter

import numpy as np

from dotscli.errors import DotsError
from dotscli.hot.exchange import Exchange, Floats, Frequencies, Rule, exchanges
from dotscli.hot.expert_cache import ExpertCache, HotCounters, HotLayer
from dotscli.hot.heat import Heat

LOOK_S, IDLE_S = 0.02, 0.25  # how often the thread looks for new tokens, and when none come
UPLOAD_SHARE = 0.5  # of the time that goes by; an upload competes with the CPU for main memory
FIRST_BUDGET = 4  # exchanges of the first step, before an upload has been measured


def token_counts(model: ExpertCache) -> dict[int, np.ndarray]:
    """Layer -> tokens routed to each expert since the load, decoding and in prompts: uint64."""
    return {layer: decode + prefill for layer, (decode, prefill) in model.heat().items()}


def n_tokens_of(counts: Mapping[int, np.ndarray], n_experts_used: int) -> int:
    """How many tokens such counts are of; the last layer skips those without logits."""
    return max((int(values.sum()) for values in counts.values()), default=0) // n_experts_used


class Price:
    """What an upload costs, in misses that the CPU computes in the same time.

    A miss is timed on decoded tokens alone, and on those beside which nothing was uploaded: the
    uploading thread takes a core and memory from the CPU's side.

    Attributes:
        disturbed: whether uploads went on beside the tokens that the next `observe` sees.
    """

    def __init__(self) -> None:
        self.disturbed = False
        self._seen: HotCounters | None = None
        self._miss_s = 0.0

    def observe(self, now: HotCounters) -> None:
        """Take in what has been computed since the last call."""
        before, self._seen = self._seen, now
        if before is None:
            return
        misses = now.decode_misses - before.decode_misses
        in_prompts = now.prefill_misses + now.prefill_hits
        in_prompts -= before.prefill_misses + before.prefill_hits
        if misses <= 0 or in_prompts or (self.disturbed and self._miss_s):
            return
        took = (now.cpu_ns - before.cpu_ns) / 1e9 / misses
        self._miss_s = 0.8 * self._miss_s + 0.2 * took if self._miss_s else took

    def of(self, upload_s: float) -> float:
        """The price of an upload that takes so long; 1 before either is known."""
        return upload_s / self._miss_s if upload_s and self._miss_s else 1.0


class Adaptation:
    """Keeps resident what pays.

    Args:
        model: loaded, with its slots reserved and the first residents placed.
        n_experts_used: experts per token.
        heat: what is known of earlier runs.
    """

    def __init__(self, model: ExpertCache, n_experts_used: int, heat: Heat | None = None) -> None:
        self._model = model
        self._n_used = n_experts_used
        self._rule = Rule()
        self._layers = tuple(
            layer for layer in model.layers() if 0 < layer.n_slots < layer.n_experts
        )
        known = {} if heat is None else heat.layers
        start = np.zeros((len(self._layers), max((x.n_experts for x in self._layers), default=0)))
        for row, layer in enumerate(self._layers):
            start[row] = known.get(layer.layer, 0)
        self._frequencies = Frequencies(start, n_experts_used, self._rule)
        self._seen = np.zeros_like(self._frequencies.slow)
        self._n_tokens = 0
        self._upload_s = 0.0
        self._price = Price()
        self._last = perf_counter()
        self._one = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow the tokens, until `stop`; nothing to do where no layer has a choice."""
        if self._layers:
            self._thread = threading.Thread(target=self._run, name="hot experts", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it, after the upload that is under way; harmless when done twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def step(self) -> int:
        """Take in the tokens since the last step and exchange; the number of exchanges.

        Raises:
            DotsError: a slot isn't there any more.
        """
        with self._one:
            return self._step() if self._layers else 0

    def _step(self) -> int:
        counts = token_counts(self._model)
        n_tokens = n_tokens_of(counts, self._n_used) - self._n_tokens
        if n_tokens <= 0:
            return 0
        self._price.observe(self._model.counters())
        now: Floats = np.array([counts[layer.layer] for layer in self._layers], np.float64)
        self._frequencies.observe(now - self._seen, n_tokens)
        self._seen, self._n_tokens = now, self._n_tokens + n_tokens
        slots = [self._slots(layer) for layer in self._layers]
        resident = np.zeros(now.shape, np.bool_)
        for row, slot_of in enumerate(slots):
            resident[row, list(slot_of)] = True
        done = 0
        score, price = self._frequencies.score(), self._price.of(self._upload_s)
        for exchange in exchanges(score, resident, self._rule, self._budget(), price):
            if self._stop.is_set():
                break
            self._upload(exchange, slots[exchange.row][exchange.out])
            done += 1
        self._price.disturbed = done > 0
        return done

    def _slots(self, layer: HotLayer) -> dict[int, int]:
        found = enumerate(self._model.residents(layer.layer))
        return {expert: slot for slot, expert in found if expert >= 0}

    def _upload(self, exchange: Exchange, slot: int) -> None:
        began = perf_counter()
        self._model.place(self._layers[exchange.row].layer, slot, exchange.into)
        took = perf_counter() - began
        self._upload_s = 0.9 * self._upload_s + 0.1 * took if self._upload_s else took

    def _budget(self) -> int:
        now = perf_counter()
        went_by, self._last = now - self._last, now
        if not self._upload_s:
            return FIRST_BUDGET
        return max(1, int(UPLOAD_SHARE * went_by / self._upload_s))

    def _run(self) -> None:
        seen, pause = 0, LOOK_S
        while not self._stop.wait(pause):
            found = self._model.counters()
            pairs = found.decode_hits + found.decode_misses
            pairs += found.prefill_hits + found.prefill_misses
            pause = LOOK_S if pairs > seen else min(2 * pause, IDLE_S)
            if pairs == seen:
                continue
            seen = pairs
            try:
                self.step()
            except DotsError:  # the slot is gone: the residents stay as they are
                return
