"""Whether a load uses hot experts, on which device, and what else is placed for them.

Decided from the header, the options and the free memory that ggml reports, before anything is
loaded. Whoever asked for hot experts hears why there are none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dotscli.engine.devices import Device, registered
from dotscli.engine.lib import versions
from dotscli.engine.options import EngineOptions, HotOptions
from dotscli.engine.overrides import EXPERTS
from dotscli.engine.sizing import bytes_per_token, context_size, free_memory
from dotscli.errors import DotsError, ExitStatus
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.slots import HeatCounts
from dotscli.models.check import sizes_of
from dotscli.models.gguf_file import GgufFile
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.hot.guard import Trials
    from dotscli.hot.kept_heat import KeptHeat


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


def choose(gguf: GgufFile, options: EngineOptions, warn: Callable[[str], None]) -> Decision:
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
    known = {device.name: device for device in registered() if device.type != "ACCEL"}
    gpus = [device for device in known.values() if device.type == "GPU"]
    device = _device(hot, known, gpus)
    if options.n_gpu_layers == 0 and not hot.asked:
        device = None  # nothing is to be on a GPU

    def off(reason: str, instead: EngineOptions = options, *, say: bool = hot.asked) -> Decision:
        if say:
            warn(f"hot experts are off: {reason}")
        return Decision(instead, reason=reason if say else "")

    if device is None:
        return off("llama.cpp sees no GPU here; --hot-device CPU tries them out")
    from dotscli.hot.heat_store import file_of  # with numpy, which stock need not wait for
    from dotscli.hot.kept_heat import KeptHeat

    cost = file_cost(gguf)
    path = file_of(gguf.path, hot.folder) if hot.folder is not None else None
    kept = KeptHeat(cost, path, hot.heat)
    if kept.problem:
        warn(kept.problem)
    smallest = min((layer.expert_nbytes for layer in cost.moe_layers), default=0)
    stock = options
    if hot.nbytes is not None:
        if hot.nbytes < smallest:
            return off(f"an expert takes {format_bytes(smallest)}")
    elif _places_experts(gguf, options):
        return off("-cmoe, -ncmoe or -ot says where experts go, and --hot has no size")
    else:
        # llama.cpp divides layers over all GPUs
        free = sum(gpu.free_bytes for gpu in gpus) or device.free_bytes
        found = _placement(gguf, cost, options, free, as_counts(kept))
        if found.n_resident == cost.n_experts:
            return off("the whole model fits into device memory")
        if options.n_gpu_layers is None:
            stock = _as_placed(options, found)
            if not found.n_resident:
                return off("dense weights and cache leave no device memory for experts", stock)
    from dotscli.hot.backend import plugin

    if reason := plugin.unavailable():
        return off(reason, stock, say=True)
    from dotscli.hot.guard import SUFFIX, Trials, circumstances

    n_threads, _ = options.threads()
    key = circumstances(device.name, device.description, n_threads, versions()["llama.cpp"])
    trials = Trials(path and path.with_suffix(SUFFIX), gguf.path.name, key) if hot.guard else None
    insists = hot.nbytes is not None or hot.trace is not None
    finding = trials.known() if trials is not None else None
    if finding is not None and not finding.pays and not insists:
        return off(finding.describe(), stock, say=True)
    return Decision(
        options,
        HotChoice(device, hot.nbytes, cost, kept, hot.adapt, stock, insists, trials, hot.trace),
    )


def _device(hot: HotOptions, known: Mapping[str, Device], gpus: list[Device]) -> Device | None:
    if not hot.device:
        return max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    device = known.get(hot.device)
    if device is None:
        raise DotsError(
            f"--hot-device names the unknown device {hot.device!r}",
            hint=f"this machine has {', '.join(known)}",
            exit_status=ExitStatus.USAGE,
        )
    if hot.nbytes is None and device.type not in ("GPU", "IGPU"):
        raise DotsError(
            f"--hot-device {device.name} has no memory of its own to size hot experts by",
            hint="say how much to use, for example --hot 1G",
            exit_status=ExitStatus.USAGE,
        )
    return device


def _places_experts(gguf: GgufFile, options: EngineOptions) -> bool:
    """Whether the user has sent any routed experts somewhere."""
    if options.cpu_moe or options.n_cpu_moe:
        return True
    experts = [tensor.name for tensor in gguf.tensors if re.search(EXPERTS, tensor.name)]
    patterns = [text.rpartition("=")[0] for text in options.override_tensor]
    try:
        return any(re.search(pattern, name) for pattern in patterns for name in experts)
    except re.error:
        return True  # refused with a reason when the overrides are made


def _placement(
    gguf: GgufFile,
    cost: ModelCost,
    options: EngineOptions,
    free: int,
    heat: HeatCounts | None,
) -> Placement:
    sizes = sizes_of(gguf)
    token_bytes = bytes_per_token(sizes.n_layers, sizes.n_heads * sizes.head_dim, options)
    left = max(0, free - cost.dense_nbytes)
    n_ctx = options.n_ctx or context_size(cost.n_ctx_train, token_bytes, left)
    kinds = options.cache_type_k, options.cache_type_v
    return place(cost, Request(free, free_memory(0), n_ctx, *kinds), heat)


def _as_placed(options: EngineOptions, found: Placement) -> EngineOptions:
    """The same placement in the words of stock llama.cpp: with what it can do on the device."""
    stock = found.engine_options(hot=False)
    return dataclasses.replace(
        options,
        n_gpu_layers=stock.n_gpu_layers,
        override_tensor=(*options.override_tensor, *stock.override_tensor),
    )
