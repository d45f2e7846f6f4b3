"""How a model will be loaded on this machine as it is now: decided, said and checked before.

It asks for memory and devices, and says what is not as anybody would expect. The arithmetic is
`dotscli.engine.main_memory`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dotscli.engine.available import available_memory
from dotscli.engine.devices import has_gpu
from dotscli.engine.hot.choice import HotChoice
from dotscli.engine.hot.placement import placement_on
from dotscli.engine.main_memory import Sizes, held, load_sizes, too_small
from dotscli.engine.memory import cache_room, gpu_memory
from dotscli.engine.options import EngineOptions
from dotscli.hot.memory_use import MainMemory, Verdict
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.models.gguf_file import GgufFile
from dotscli.terminal.text import format_bytes


@dataclass(frozen=True)
class LoadPlan:
    """How to load.

    Attributes:
        cost: of the model.
        memory: what main memory is used for, with a verdict.
        tiered: layers whose routed experts are read from the disk when they are needed; none
            where everything fits, or where that is not to be.
        n_ctx, n_ubatch: the context to make, and the tokens to compute at once.
    """

    cost: ModelCost
    memory: MainMemory
    tiered: tuple[int, ...]
    n_ctx: int
    n_ubatch: int

    @property
    def dense_nbytes(self) -> int:
        """Weights that are read before the first token where experts are tiered."""
        tiered = sum(c.experts_nbytes for c in self.cost.layers if c.layer in self.tiered)
        return self.cost.weights_nbytes - tiered


def plan_load(
    gguf: GgufFile,
    options: EngineOptions,
    choice: HotChoice | None,
    warn: Callable[[str], None],
) -> LoadPlan:
    """Decide how to load.

    Args:
        choice: hot experts on a device, if there are to be any.
        warn: gets a sentence where weights don't fit, or the context is short.

    Raises:
        DotsError: main memory is too small, with what would help.
    """
    cost = file_cost(gguf)
    hot = None if choice is None else _hot_nbytes(gguf, cost, options, choice)
    what = held(gguf, cost, options, gpu=has_gpu(), hot=hot)
    free = available_memory().nbytes
    ram = free if options.ram_nbytes is None else min(free, options.ram_nbytes)
    if options.ram_nbytes is not None and options.ram_nbytes > free:
        warn(f"--ram {format_bytes(options.ram_nbytes)}: only {format_bytes(free)} are free")
    sizes = load_sizes(cost, what, options, ram, cache_room(gguf, options))
    tiered: tuple[int, ...] = ()
    if sizes.memory.verdict is not Verdict.FITS:
        tiered = tuple(what.cold) if options.tier else ()
        if reason := _no_tier(options, tiered):
            tiered = ()
            lacking = sizes.memory.disk + sizes.memory.use.missing
            warn(
                f"{gguf.path.name} needs {format_bytes(lacking)} more memory than is "
                f"free: the rest is read from the disk again and again, which is slow{reason}"
            )
        elif sizes.memory.verdict is Verdict.TOO_SMALL:
            raise too_small(sizes.memory.use, sizes.n_ctx)
        else:
            _say(gguf, cost, sizes, hot or 0, warn)
    return LoadPlan(cost, sizes.memory, tiered, sizes.n_ctx, sizes.n_ubatch)


def _hot_nbytes(gguf: GgufFile, cost: ModelCost, options: EngineOptions, choice: HotChoice) -> int:
    if choice.device.type == "CPU":
        return 0  # its copies are in main memory too
    free = gpu_memory() or choice.device.free_bytes
    room = placement_on(gguf, cost, options, free, choice.heat).device.experts
    return room if choice.nbytes is None else min(choice.nbytes, room)


def _no_tier(options: EngineOptions, layers: tuple[int, ...]) -> str:
    """Why experts aren't read when they are needed, as the end of a sentence; empty if they are."""
    if not options.tier:
        return " (--no-tier)"
    if not layers:
        return ""
    from dotscli.hot import backend

    reason = backend.unavailable()
    return f" ({reason})" if reason else ""


def _say(
    gguf: GgufFile, cost: ModelCost, sizes: Sizes, hot: int, warn: Callable[[str], None]
) -> None:
    there = (sizes.memory.use.experts + hot) / max(1, cost.experts_nbytes)
    warn(
        f"{gguf.path.name} needs {format_bytes(sizes.memory.disk)} more memory than there is: "
        f"{min(1.0, there):.0%} of the experts fit, the others are read from the disk when they "
        "are needed"
    )
    if sizes.short_ctx:
        warn(
            f"the context is {sizes.n_ctx} tokens, for more than that doesn't fit; "
            "-ctk q8_0 -ctv q8_0 makes it nearly twice as long"
        )
