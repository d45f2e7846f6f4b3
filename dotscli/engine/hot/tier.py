"""The memory tier of one loaded model: as many routed experts in main memory as there is room for.

Experts are read by the native backend; here is how much memory it may take, from moment to moment,
what it should read first, and what it has done. Memory is watched while the model is there: what
other programs and long prompts take, experts give back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from dotscli.engine.available import available_memory
from dotscli.engine.hot.choice import as_counts
from dotscli.engine.stream import RamFigures
from dotscli.errors import DotsError
from dotscli.hot.adapt import n_tokens_of, token_counts
from dotscli.hot.expert_cache import ExpertCache, RamCounters
from dotscli.hot.expert_files import PARTS, expert_files, in_file_order
from dotscli.hot.kept_heat import KeptHeat
from dotscli.hot.memory_use import margin_nbytes
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.slots import expert_shares, slot_order
from dotscli.models.gguf_file import GgufFile

INTERVAL_S = 0.1  # between two looks at free memory: other programs take some GB in a second
STEP = 1 << 30  # bytes that the budget grows by between two looks
STEADY = 30  # looks: a batch frees its buffers for a moment, which is no room for experts
PAGE = 4096
TOKENS = 256.0  # that kept heat counts for


class MemoryTier:
    """Opened before the load, `start`ed with a context, `warm`ed; `finish`ed, then `close`d.

    Args:
        cache: opened, and not yet loaded.
        gguf: the model.
        cost: of it.
        layers: those whose experts are tiered.
        limit: bytes that experts may take at most, None for what is free.
        kept: what is known of their use, and where to keep what will be.
        owned: whether nobody else closes the cache and keeps the counts.
        warn: gets what goes wrong at the end.

    Raises:
        DotsError: the files can't be read so.
    """

    def __init__(
        self,
        cache: ExpertCache,
        gguf: GgufFile,
        cost: ModelCost,
        layers: Sequence[int],
        limit: int | None,
        kept: KeptHeat,
        *,
        owned: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._cache = cache
        self._cost = cost
        self._layers = tuple(layers)
        self._kept = kept
        self._owned = owned
        self._warn = warn
        files, self._parts = expert_files(gguf, self._layers)
        cache.read_from(files, self._parts)
        nbytes = {c.layer: c.experts_nbytes for c in cost.moe_layers}
        whole = sum(nbytes[layer] for layer in self._layers)
        pages = len(self._parts) * 2 * PAGE * max(c.n_experts for c in cost.moe_layers)
        self._most = whole + pages if limit is None else limit
        self._margin = margin_nbytes(available_memory().total)
        self._budget = 0
        self._free: deque[int] = deque(maxlen=STEADY)
        self._before = self._prefilled = cache.ram()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._last: RamFigures | None = None

    @property
    def placements(self) -> list[tuple[str, int]]:
        """Pattern and address of a buffer type: where tiered experts go, whatever options say."""
        [(_, address)] = self._cache.placements
        layers = "|".join(map(str, self._layers))
        return [(rf"^blk\.({layers})\.ffn_(up|gate|down)_exps\.weight$", address)]

    @property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors that llama.cpp doesn't read."""
        return frozenset(f"blk.{n}.ffn_{part}_exps.weight" for n in self._layers for part in PARTS)

    def loaded(self) -> None:
        """After the load.

        Raises:
            DotsError: llama.cpp did not leave the experts to the backend.
        """
        if (found := self._cache.n_tiered()) != len(self._layers):
            raise DotsError(
                f"only {found} of {len(self._layers)} layers leave their experts in the file",
                hint="load it with: --no-tier",
            )

    def start(self) -> None:
        """Gives experts what the model and its context have left, from here on all the time."""
        self._adjust(self._most)
        self._thread.start()

    def warm(self) -> None:
        """Reads what earlier runs have used most, then the others, until memory is full."""
        heat = as_counts(self._kept)
        if heat is None:
            self._cache.warm({}, in_file_order(self._parts))
            return
        hottest = slot_order(self._cost, expert_shares(self._cost, heat), by_heat=True)
        ours = {layer: heat[layer] for layer in self._layers if layer in heat}
        mean = max(1.0, sum(map(sum, ours.values())) / max(1, len(ours)))
        # as if a few tokens had just come: enough for an order, soon outweighed
        scale = TOKENS * self._cost.n_experts_used / mean
        scaled = {layer: [scale * value for value in counts] for layer, counts in ours.items()}
        self._cache.warm(scaled, [pair for pair in hottest if pair[0] in self._layers])

    def mark(self) -> None:
        """From here on `figures` are of the next answer."""
        self._before = self._prefilled = self._cache.ram()

    def prefilled(self) -> None:
        """The prompt has been read: what is read from here on is read for single tokens."""
        self._prefilled = self._cache.ram()

    def figures(self) -> RamFigures:
        """What has been done since `mark`; after `finish`, what had been done by then."""
        if self._last is not None:
            return self._last
        now, before = self._cache.ram(), self._before
        return RamFigures(
            resident_experts=now.resident_experts,
            n_experts=sum(c.n_experts for c in self._cost.moe_layers if c.layer in self._layers),
            resident_nbytes=now.resident_nbytes,
            budget_nbytes=self._budget,
            direct=now.direct,
            decode_hits=now.decode_hits - before.decode_hits,
            decode_misses=now.decode_misses - before.decode_misses,
            prefill_hits=now.prefill_hits - before.prefill_hits,
            prefill_misses=now.prefill_misses - before.prefill_misses,
            read_nbytes=now.read_nbytes - before.read_nbytes,
            decode_read_nbytes=now.read_nbytes - self._prefilled.read_nbytes,
            wait_s=(now.wait_ns - before.wait_ns) / 1e9,
        )

    def counters(self) -> RamCounters:
        """Sums since the load."""
        return self._cache.ram()

    def failure(self) -> str:
        """Why the last computation failed, told once; empty if it isn't known here."""
        return self._cache.failure()

    def finish(self) -> None:
        """Ends the watch and keeps the counts; while the model is there, once."""
        if self._last is not None:
            return
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._last = self.figures()
        if not self._owned:
            return
        counts = token_counts(self._cache)
        try:
            self._kept.save(counts, n_tokens_of(counts, self._cost.n_experts_used))
        except DotsError as error:
            self._warn(error.message)

    def close(self) -> None:
        """Gives the memory back; harmless when done twice."""
        if self._owned:
            self._cache.close()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._adjust(STEP)

    def _adjust(self, step: int) -> None:
        """What is free can be added to what is there, less a margin; what is missing goes.

        Free is what has been for a while, missing what is at this moment.
        """
        free = available_memory().nbytes - self._margin
        self._free.append(free)
        there = self._cache.ram().resident_nbytes
        change = free if free < 0 else max(0, min(*self._free, step))
        wanted = max(0, min(self._most, there + change))
        if wanted != self._budget:
            self._budget = wanted
            self._cache.set_ram(wanted)
