"""Whether a load uses hot experts: the device, the placement and the verdict, put together.

Decided from the header, the options and the devices given, before anything is loaded. Whoever asked
for hot experts hears why there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dotscli.engine.devices import Device
from dotscli.engine.hot.device import gpus, hot_device
from dotscli.engine.hot.placement import as_placed, placement_on, places_experts
from dotscli.engine.options import EngineOptions, HotOptions
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.hot.slots import HeatCounts
from dotscli.models.gguf_file import GgufFile
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.hot.kept_heat import KeptHeat
    from dotscli.hot.verdict import Trials


class Decision(NamedTuple):
    """The options to load with, the hot experts if there are to be any, and else why not.

    `reason` is empty where nobody need ask, since nobody wanted any.
    """

    options: EngineOptions
    choice: HotChoice | None = None
    reason: str = ""


@dataclass(frozen=True)
class HotChoice:
    """Hot experts it is: `nbytes` of them on the device, None for what is free in the end.

    `stock`: the options to load with where they turn out not to pay, unless the user `insists`;
    `trials`: what is known of that, None to look no further. `trace`: a file for what is routed.
    """

    device: Device
    nbytes: int | None
    cost: ModelCost
    kept: KeptHeat
    adapt: bool
    stock: EngineOptions
    insists: bool
    trials: Trials | None
    trace: Path | None

    @property
    def heat(self) -> HeatCounts | None:
        """As placement takes it."""
        return as_counts(self.kept)


def as_counts(kept: KeptHeat) -> HeatCounts | None:
    """Heat as plain lists, None where nothing is known."""
    if kept.heat is None:
        return None
    return {layer: counts.tolist() for layer, counts in kept.heat.layers.items()}


def heat_file(gguf: GgufFile, hot: HotOptions | None) -> Path | None:
    """Where this model's counts are kept, None for nowhere."""
    if hot is None or hot.folder is None:
        return None
    from dotscli.hot.heat_store import file_of  # with numpy, which stock need not wait for

    return file_of(gguf.path, hot.folder)


def kept_heat(
    gguf: GgufFile, cost: ModelCost, hot: HotOptions | None, warn: Callable[[str], None]
) -> KeptHeat:
    """What is known of the experts' use; a kept file that can't be used is a warning.

    Raises:
        DotsError: heat that was given and can't be used.
    """
    from dotscli.hot.kept_heat import KeptHeat

    kept = KeptHeat(cost, heat_file(gguf, hot), hot.heat if hot is not None else None)
    if kept.problem:
        warn(kept.problem)
    return kept


def choose(
    gguf: GgufFile,
    options: EngineOptions,
    devices: Sequence[Device],
    warn: Callable[[str], None],
) -> Decision:
    """What to load with and where hot experts go, if anywhere.

    Where the user left the placement to us and the device can't hold the whole model, the options
    say what goes on it; otherwise they are those that were given.

    Raises:
        DotsError: a device that doesn't exist, no size for one that has none, heat that can't be
            used.
    """
    hot = options.hot
    if hot is None:
        return Decision(options)
    device = hot_device(hot, devices)
    if options.n_gpu_layers == 0 and not hot.asked:
        device = None  # nothing is to be on a GPU

    def off(reason: str, instead: EngineOptions = options, *, say: bool = hot.asked) -> Decision:
        if say:
            warn(f"hot experts are off: {reason}")
        return Decision(instead, reason=reason if say else "")

    if device is None:
        return off("llama.cpp sees no GPU here; to try them: --hot 1M --hot-device CPU")
    cost = file_cost(gguf)
    path = heat_file(gguf, hot)
    kept = kept_heat(gguf, cost, hot, warn)
    smallest = min((layer.expert_nbytes for layer in cost.moe_layers), default=0)
    stock = options
    if hot.nbytes is not None:
        if hot.nbytes < smallest:
            return off(f"a single expert takes {format_bytes(smallest)}")
    elif places_experts(gguf, options):
        return off("-cmoe, -ncmoe or -ot places the experts, and --hot gives no size")
    else:
        # llama.cpp divides layers over all GPUs
        free = sum(gpu.free_bytes for gpu in gpus(devices)) or device.free_bytes
        found = placement_on(gguf, cost, options, free, as_counts(kept))
        if found.n_resident == cost.n_experts:
            return off("the whole model fits in device memory")
        if options.n_gpu_layers is None:
            stock = as_placed(options, found)
            if not found.n_resident:
                return off("dense weights and cache leave no device memory for experts", stock)
    from dotscli.hot import backend

    if reason := backend.unavailable():
        return off(reason, stock, say=True)
    from dotscli.engine.hot.remembered import refusal, trials_of

    trials = trials_of(gguf.path, path, device, options.threads()[0]) if hot.guard else None
    insists = hot.nbytes is not None or hot.trace is not None
    if reason := refusal(trials, insists):
        return off(reason, stock, say=True)
    return Decision(
        options,
        HotChoice(device, hot.nbytes, cost, kept, hot.adapt, stock, insists, trials, hot.trace),
    )
