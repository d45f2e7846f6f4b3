"""What a context costs: the longest that fits, and what a placement could gain by another one.

Each answer is a placement, made for the context in question; nothing here has rules of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dotscli.hot.memory_use import Verdict
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.slots import HeatCounts, knee_slots
from dotscli.terminal.text import format_bytes

CONTEXTS = (4096, 8192, 16384, 32768)
KV_TYPES = ("f16", "q8_0", "q4_0")
STEP = 256  # llama.cpp rounds contexts up to it
SHORTEST = 2048  # nobody is advised to take less
LOW_HIT_RATE = 0.25  # below it, others measured no gain or one of a few percent


@dataclass(frozen=True)
class Column:
    """One type of cache: a placement per context, and the longest contexts that fit.

    Attributes:
        placements: one for each of `contexts` of the table.
        longest: with all dense weights and the cache on the device, whatever is left for experts;
            without a device, the longest that can be loaded. 0 where none fits.
        longest_hot: the same with at least the knee's slots in every layer.
    """

    kv_type: str
    placements: tuple[Placement, ...]
    longest: int
    longest_hot: int


def contexts_of(cost: ModelCost, contexts: Sequence[int] = CONTEXTS) -> tuple[int, ...]:
    """The contexts that the model was trained for."""
    return tuple(n for n in contexts if n <= cost.n_ctx_train) or (cost.n_ctx_train,)


def column(cost: ModelCost, request: Request, kv_type: str, heat: HeatCounts | None) -> Column:
    """Placements for every context of the table at one type of cache."""
    typed = replace(request, type_k=kv_type, type_v=kv_type)
    return Column(
        kv_type,
        tuple(place(cost, replace(typed, n_ctx=n), heat) for n in contexts_of(cost)),
        longest_context(cost, typed),
        longest_context(cost, typed, knee_slots(cost)),
    )


def longest_context(cost: ModelCost, request: Request, n_slots: int = 0) -> int:
    """The longest context that fits, a multiple of 256 up to what the model was trained for.

    Args:
        request: its n_ctx is ignored.
        n_slots: hot experts that every layer must have room for.
    """

    def fits(n_ctx: int) -> bool:
        found = place(cost, replace(request, n_ctx=n_ctx))
        if found.verdict is Verdict.TOO_SMALL or not request.device_nbytes:
            return found.verdict is not Verdict.TOO_SMALL
        slots = found.slots().values()
        return found.dense_on_device and min(slots, default=n_slots) >= n_slots

    return _longest(fits, cost.n_ctx_train)


def loadable_context(cost: ModelCost, request: Request) -> int:
    """The longest context up to the requested one that isn't too much for main memory.

    A multiple of 256, or the request's own; 0 where none can be loaded.
    """

    def loads(n_ctx: int) -> bool:
        return place(cost, replace(request, n_ctx=n_ctx)).verdict is not Verdict.TOO_SMALL

    return request.n_ctx if loads(request.n_ctx) else _longest(loads, request.n_ctx)


def _longest(fits: Callable[[int], bool], most: int) -> int:
    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * STEP):
            low = middle
        else:
            high = middle - 1
    return low * STEP


def advice(found: Placement, heat: HeatCounts | None = None) -> tuple[str, ...]:
    """What is worth knowing about a placement, a sentence each; the most urgent first."""
    cost, request = found.cost, found.request
    if found.verdict is Verdict.TOO_SMALL:
        return (_too_small(found),)
    said = []
    if found.verdict is Verdict.TIER:
        said.append(
            f"{format_bytes(found.disk_nbytes)} of experts have no place in memory: those in main "
            "memory take turns, and the others are read from the disk when they are wanted"
        )
    if not request.device_nbytes:
        return tuple(said)
    with_q8 = place(cost, replace(request, type_k="q8_0", type_v="q8_0"), heat)
    if not found.dense_on_device:
        longest = longest_context(cost, request)
        ways = [f"-c {longest}"] if longest >= SHORTEST else []
        if with_q8.dense_on_device:
            ways.append("-ctk q8_0 -ctv q8_0")
        n_layers = sum(layer.on_device for layer in found.layers)
        said.append(
            f"dense weights and cache fit on the device for only {n_layers} of {len(found.layers)} "
            "layers, so no experts go there"
            + (f"; all fit with {' or '.join(ways)}" if ways else "")
        )
        return tuple(said)
    if found.n_resident == cost.n_experts:
        said.append("the whole model fits on the device: hot experts have nothing to add")
        return tuple(said)
    fewest, knee = min(found.slots().values(), default=0), knee_slots(cost)
    if fewest < knee:
        said.append(
            f"{fewest} slots per layer are fewer than {knee}, twice the experts of a token: hot "
            "experts will hardly pay off; a shorter context or smaller cache types make room"
        )
    elif found.hit_rate < LOW_HIT_RATE:
        said.append(
            f"an expected hit rate of {found.hit_rate:.0%} is low: others saw gains of only a few "
            "percent there unless experts are exchanged while running"
        )
    more = with_q8.n_resident - found.n_resident
    if more > 0:
        said.append(f"-ctk q8_0 -ctv q8_0 makes room for {more} more experts")
    return tuple(said)


def _too_small(found: Placement) -> str:
    """What is missing, and what would help: a smaller cache, then a smaller type."""
    cost, request = found.cost, found.request
    ways = []
    longest = loadable_context(cost, request)
    if longest >= SHORTEST:
        ways.append(f"-c {longest}")
    with_q8 = replace(request, type_k="q8_0", type_v="q8_0")
    if (request.type_k, request.type_v) == ("f16", "f16"):
        longest = loadable_context(cost, with_q8)
        shorter = "" if longest == request.n_ctx else f"-c {longest} "
        if longest >= SHORTEST:
            ways.append(f"{shorter}-ctk q8_0 -ctv q8_0")
    help_ = f"it can with {' or '.join(ways)}" if ways else "it takes a smaller --type"
    return (
        "the model can't be loaded: dense weights, cache, buffers and the experts of one layer "
        f"need {format_bytes(found.missing_nbytes)} more main memory than there is; {help_}"
    )
