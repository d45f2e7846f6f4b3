"""The hot experts of one loaded model: opened before the load, closed after the model is freed.

What goes wrong on the device's side is said in a warning, and the experts concerned stay on the
CPU. Whether there are hot experts at all was decided before, in `dotscli.engine.hot.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

from dotscli.engine.decode import Decoder
from dotscli.engine.devices import registered
from dotscli.engine.hot.choice import HotChoice
from dotscli.engine.hot.trial import compare
from dotscli.engine.stream import HotFigures
from dotscli.errors import DotsError
from dotscli.hot.adapt import Adaptation, n_tokens_of, token_counts
from dotscli.hot.expert_cache import ExpertCache, HotCounters
from dotscli.hot.memory_use import margin_nbytes
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.slots import HeatCounts, expert_shares, n_fitting, slot_order
from dotscli.terminal.text import format_bytes

NO_COUNTERS = HotCounters(**{field.name: 0 for field in fields(HotCounters)})


def residents_for(
    cost: ModelCost, heat: HeatCounts | None, nbytes: int, layers: Collection[int]
) -> dict[int, list[int]]:
    """Layer -> experts to begin with, as many as fit into so many bytes.

    Args:
        layers: those whose experts the backend holds; others were sent elsewhere.
    """
    order = slot_order(cost, expert_shares(cost, heat), by_heat=heat is not None)
    there = [pair for pair in order if pair[0] in layers]
    found: dict[int, list[int]] = {}
    for layer, expert in there[: n_fitting(cost, there, nbytes)]:
        found.setdefault(layer, []).append(expert)
    return found


class HotExperts:
    """Made before the load, `fill`ed after it, used, `finish`ed; `close`d without the model."""

    def __init__(self, choice: HotChoice, cache: ExpertCache, warn: Callable[[str], None]) -> None:
        """Takes a cache that was opened on the device of the choice."""
        self._choice = choice
        self._warn = warn
        self._model = cache
        self._adaptation: Adaptation | None = None
        self._before = NO_COUNTERS
        self._last: HotFigures | None = None

    def fill(self, on_progress: Callable[[float, float], None] | None) -> None:
        """Reserves slots and copies the first residents into them.

        Args:
            on_progress: gets (bytes copied, bytes to copy).
        """
        layers = {layer.layer for layer in self._model.layers()}
        nbytes = self._budget()
        wanted = residents_for(self._choice.cost, self._choice.heat, nbytes, layers)
        problems = []
        size = {cost.layer: cost.expert_nbytes for cost in self._choice.cost.moe_layers}
        total = sum(size[layer] * len(experts) for layer, experts in wanted.items())
        done = 0
        for layer, experts in sorted(wanted.items()):
            try:
                self._model.reserve(layer, len(experts))
                self._model.set_residents(layer, experts)
            except DotsError as error:
                problems.append(error.message)
            done += size[layer] * len(experts)
            if on_progress is not None:
                on_progress(done, total)
        if problems:
            more = f" ({len(problems)} layers in all)" if len(problems) > 1 else ""
            self._warn(f"{problems[0]}{more}; their experts stay on the CPU")
        if not wanted:
            self._warn(f"no expert is hot: {format_bytes(nbytes)} is too little for even one")

    def start(self) -> None:
        """Begins to count, and to follow the tokens if that is wanted.

        Raises:
            DotsError: the trace can't be written.
        """
        self.mark()
        if self._choice.trace is not None:
            self._model.trace(self._choice.trace)
        if self._choice.adapt and self._model.has_residents():
            heat = self._choice.kept.heat
            self._adaptation = Adaptation(self._model, self._choice.cost.n_experts_used, heat)
            self._adaptation.start()

    def refusal(self, context: Any, n_vocab: int) -> str:
        """Why to take stock's placement instead; empty if hot experts pay or are insisted on.

        Compares where nothing is known yet, and remembers; between `fill` and `start`.

        Raises:
            DotsError: llama.cpp fails.
        """
        trials = self._choice.trials
        if trials is None or not self._model.has_residents():
            return ""
        found = trials.known()
        if found is None:
            found = compare(self._model, Decoder(context, n_vocab), n_vocab)
            try:
                if found.decided:
                    trials.remember(found)
            except DotsError as error:
                self._warn(error.message)
        if found.pays:
            return ""
        if self._choice.insists:
            self._warn(f"hot experts are on as requested, but {found.describe()}")
            return ""
        self._warn(f"hot experts are off: {found.describe()}")
        return found.describe()

    def mark(self) -> None:
        """From here on `figures` are of the next answer; says what was switched off in the last."""
        self._before = self._model.counters()
        for message in self._model.messages():
            self._warn(f"hot experts: {message}")

    def figures(self) -> HotFigures:
        """What has been done since `mark`; after `finish`, what had been done by then."""
        if self._last is not None:
            return self._last
        now, before = self._model.counters(), self._before
        layers = self._model.layers()
        return HotFigures(
            device=self._choice.device.name,
            resident_experts=sum(layer.n_resident for layer in layers if not layer.off),
            n_experts=self._choice.cost.n_experts,
            layers_off=sum(layer.off for layer in layers),
            decode_hits=now.decode_hits - before.decode_hits,
            decode_misses=now.decode_misses - before.decode_misses,
            prefill_hits=now.prefill_hits - before.prefill_hits,
            prefill_misses=now.prefill_misses - before.prefill_misses,
            uploads=now.uploads,
            uploaded_nbytes=now.uploaded_nbytes,
            streamed_nbytes=now.streamed_nbytes - before.streamed_nbytes,
            cpu_s=(now.cpu_ns - before.cpu_ns) / 1e9,
            device_s=(now.device_ns - before.device_ns) / 1e9,
            wait_s=(now.wait_ns - before.wait_ns) / 1e9,
        )

    def residents(self) -> Mapping[int, tuple[int, ...]]:
        """Layer -> the experts that are on the device now, without order."""
        return {
            layer.layer: tuple(e for e in self._model.residents(layer.layer) if e >= 0)
            for layer in self._model.layers()
        }

    def adapt(self) -> int:
        """Takes a step of adaptation now; the number of exchanges, 0 if they are frozen."""
        return self._adaptation.step() if self._adaptation is not None else 0

    def finish(self) -> None:
        """Ends the adaptation and keeps the counts; while the model is there, once."""
        if self._last is not None:
            return
        if self._adaptation is not None:
            self._adaptation.stop()
        self._last = self.figures()
        if self._choice.trace is not None:
            try:
                self._model.trace(None)
            except DotsError as error:
                self._warn(error.message)
        self.mark()
        counts = token_counts(self._model)
        try:
            n_tokens = n_tokens_of(counts, self._choice.cost.n_experts_used)
            self._choice.kept.save(counts, n_tokens)
        except DotsError as error:
            self._warn(error.message)

    def close(self) -> None:
        """Gives the slots back; harmless when done twice."""
        self._model.close()

    def _budget(self) -> int:
        """Bytes to fill; what a device with a memory of its own keeps free it keeps in any case.

        CUDA ends the process when it later needs memory for its own and finds none.
        """
        wanted, device = self._choice.nbytes, self._choice.device
        if wanted is not None and device.type == "CPU":
            return wanted
        [now] = [known.free_bytes for known in registered() if known.name == device.name]
        room = max(0, now - margin_nbytes(device.free_bytes))
        if wanted is not None and wanted > room:
            sizes = f"{format_bytes(room)} free, {format_bytes(wanted)} were requested"
            self._warn(f"{device.name} has only {sizes} for hot experts")
        return room if wanted is None else min(wanted, room)
