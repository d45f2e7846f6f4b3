"""What a load will make of main memory: whether weights fit, how long a context, how large a batch.

Tensors are looked up one by one, by llama.cpp's rules, so that -ngl, -ncmoe and -ot count. What
follows from them is decided by `dotscli.hot.memory_use.main_memory`, as `dots plan` does; tests
hold both against each other. It asks for no memory and no device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dotscli.engine.memory import context_size
from dotscli.engine.options import MIN_UBATCH, UBATCHES, EngineOptions
from dotscli.engine.overrides import EXPERTS
from dotscli.errors import DotsError
from dotscli.hot.memory_use import (
    CTX_STEP,
    SHORT_CTX,
    SHORTEST_CTX,
    MainMemory,
    Use,
    Verdict,
    main_memory,
    margin_nbytes,
)
from dotscli.hot.model_cost import ModelCost
from dotscli.models.gguf_file import GgufFile, GgufTensor
from dotscli.terminal.text import format_bytes

UBATCH_SHARE = 8  # of the experts' memory at most, for the buffers of larger batches
N_STACKS = 3  # tensors of experts in a layer: gate, up and down
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Held:
    """What main memory has to hold, in bytes.

    Attributes:
        dense: weights that every token needs, and experts that can't be tiered.
        cold: layer -> its routed experts, less what copies on a device spare.
        n_cached: layers whose cache is in main memory.
    """

    dense: int
    cold: dict[int, int]
    n_cached: int


@dataclass(frozen=True)
class Sizes:
    """What is decided about a load: its memory, a context of so many tokens, so many at once.

    `short_ctx`: the context is shorter than anybody wants, for more doesn't fit.
    """

    memory: MainMemory
    n_ctx: int
    n_ubatch: int
    short_ctx: bool = False


def held(
    gguf: GgufFile, cost: ModelCost, options: EngineOptions, *, gpu: bool, hot: int | None
) -> Held:
    """What of a model goes into main memory with these options.

    Args:
        gpu: whether there is one that layers could go on.
        hot: bytes of routed experts that get a copy on a device of its own memory; None without hot
            experts. With them, all experts are in main memory, whatever the copies.
    """
    n_layers = len(cost.layers)
    n_gpu = options.n_gpu_layers
    n_gpu = (n_layers + 1 if gpu else 0) if n_gpu is None else n_gpu
    first_on_gpu = max(0, n_layers + 1 - n_gpu) if gpu else n_layers + 1
    overrides = _destinations(options)
    dense = 0
    stacks: dict[int, list[GgufTensor]] = {}
    for tensor in gguf.tensors:
        match = _LAYER.match(tensor.name)
        layer = int(match[1]) if match else n_layers
        in_ram = layer < first_on_gpu or tensor.name.startswith("token_embd")
        expert = match is not None and re.search(EXPERTS, tensor.name) is not None
        if expert and hot is not None:
            in_ram = True  # the backend's copies come from there
        for pattern, ram in overrides:
            if pattern.search(tensor.name):
                in_ram = ram
                break
        if in_ram and expert:
            stacks.setdefault(layer, []).append(tensor)
        elif in_ram:
            dense += tensor.nbytes
    cold = {}
    for layer, tensors in sorted(stacks.items()):
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if len(tensors) == N_STACKS:
            cold[layer] = nbytes
        else:
            dense += nbytes
    spared = (hot or 0) / max(1, sum(cold.values()))
    cold = {layer: int(nbytes * (1 - min(1.0, spared))) for layer, nbytes in cold.items()}
    return Held(dense, cold, min(n_layers, first_on_gpu))


def _destinations(options: EngineOptions) -> list[tuple[re.Pattern[str], bool]]:
    """Overrides as patterns, and whether they lead into main memory. A wrong one is said later."""
    found = []
    try:
        for text in options.override_tensor:
            pattern, _, kind = text.rpartition("=")
            found.append((re.compile(pattern), kind.startswith("CPU")))
    except re.error:
        return []
    if options.cpu_moe:
        found.append((re.compile(EXPERTS), True))
    found += [(re.compile(rf"blk\.{i}{EXPERTS}"), True) for i in range(options.n_cpu_moe)]
    return found


def load_sizes(
    cost: ModelCost, what: Held, options: EngineOptions, ram: int, cache_room: int
) -> Sizes:
    """Decide what to make with so much main memory.

    A context that nobody asked for is made shorter until it fits.

    Args:
        ram: bytes of it that may be taken.
        cache_room: bytes that are free where the cache will live, to size a context by.
    """
    kinds = options.cache_type_k, options.cache_type_v
    n_ubatch = options.n_ubatch or MIN_UBATCH
    margin = margin_nbytes(ram)

    def made(n_ctx: int, n_ubatch: int) -> MainMemory:
        kv = cost.kv_layer_nbytes(n_ctx, *kinds) * what.n_cached
        compute = cost.compute_nbytes(n_ctx, *kinds, n_ubatch) - cost.staged_nbytes
        use = Use(total=ram, dense=what.dense, kv=kv, compute=compute, margin=margin)
        return main_memory(use, what.cold.values())

    wanted = n_ctx = options.n_ctx or _sized(cost, what, options, ram - margin, cache_room)
    memory = made(n_ctx, n_ubatch)
    while not options.n_ctx and n_ctx > SHORTEST_CTX and memory.use.missing:
        n_ctx = max(SHORTEST_CTX, (n_ctx - 1) // CTX_STEP * CTX_STEP)
        memory = made(n_ctx, n_ubatch)
    if not options.n_ubatch and memory.verdict is Verdict.TIER:
        n_ubatch = _ubatch(made, memory, n_ctx)
        memory = made(n_ctx, n_ubatch)
    return Sizes(memory, n_ctx, n_ubatch, short_ctx=n_ctx < wanted)


def _sized(cost: ModelCost, what: Held, options: EngineOptions, ram: int, cache_room: int) -> int:
    """A context by what is free; experts that don't fit leave what the rest doesn't take."""
    token = cost.kv_layer_nbytes(CTX_STEP, options.cache_type_k, options.cache_type_v) // CTX_STEP
    if what.n_cached and what.dense + sum(what.cold.values()) > ram:
        room = max(0, ram - what.dense)
        return context_size(cost.n_ctx_train, token * len(cost.layers), room, SHORT_CTX)
    return context_size(cost.n_ctx_train, token * len(cost.layers), cache_room)


def _ubatch(made: Callable[[int, int], MainMemory], memory: MainMemory, n_ctx: int) -> int:
    """As many tokens at once as an eighth of the experts' memory has buffers for.

    A batch reads each expert that is not there once, so a larger one reads less for a prompt.
    """
    for n_ubatch in UBATCHES:
        if n_ubatch <= n_ctx:
            larger = made(n_ctx, n_ubatch)
            more = larger.use.compute - memory.use.compute
            if not larger.use.missing and more <= memory.use.experts // UBATCH_SHARE:
                return n_ubatch
    return MIN_UBATCH


def too_small(use: Use, n_ctx: int) -> DotsError:
    """What to say about a model that can't be loaded, and what would help."""
    message = (
        f"this model needs {format_bytes(use.needed)} of main memory with a context of {n_ctx} "
        f"tokens (dense weights {format_bytes(use.dense)}, cache {format_bytes(use.kv)}, buffers "
        f"{format_bytes(use.compute)}, experts of one layer {format_bytes(use.experts)}, "
        f"{format_bytes(use.margin)} to leave free), and {format_bytes(use.total)} are there"
    )
    if use.missing < use.kv:
        return DotsError(message, "use a smaller --ctx-size, or -ctk q8_0 -ctv q8_0")
    return DotsError(message, "end other programs, or quantize to a smaller type")
