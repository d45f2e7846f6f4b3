"""What else goes on a device beside hot experts, in the words of stock llama.cpp.

The decision is `dotscli.hot.placement`'s, the same that `dots plan` prints; here a header and
options become its request, and its answer becomes options.
"""

from __future__ import annotations

import dataclasses
import re

from dotscli.engine.memory import bytes_per_token, context_size, free_memory
from dotscli.engine.options import EngineOptions
from dotscli.engine.overrides import EXPERTS
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.slots import HeatCounts
from dotscli.models.check import sizes_of
from dotscli.models.gguf_file import GgufFile


def places_experts(gguf: GgufFile, options: EngineOptions) -> bool:
    """Whether the user has sent any routed experts somewhere."""
    if options.cpu_moe or options.n_cpu_moe:
        return True
    experts = [tensor.name for tensor in gguf.tensors if re.search(EXPERTS, tensor.name)]
    patterns = [text.rpartition("=")[0] for text in options.override_tensor]
    try:
        return any(re.search(pattern, name) for pattern in patterns for name in experts)
    except re.error:
        return True  # refused with a reason when the overrides are made


def placement_on(
    gguf: GgufFile,
    cost: ModelCost,
    options: EngineOptions,
    free: int,
    heat: HeatCounts | None,
) -> Placement:
    """What goes where with `free` bytes of device memory; pure but for the free main memory."""
    sizes = sizes_of(gguf)
    token_bytes = bytes_per_token(sizes.n_layers, sizes.n_heads * sizes.head_dim, options)
    left = max(0, free - cost.dense_nbytes)
    n_ctx = options.n_ctx or context_size(cost.n_ctx_train, token_bytes, left)
    kinds = options.cache_type_k, options.cache_type_v
    return place(cost, Request(free, free_memory(0), n_ctx, *kinds), heat)


def as_placed(options: EngineOptions, found: Placement) -> EngineOptions:
    """The same placement in the words of stock llama.cpp: with what it can do on the device."""
    stock = found.engine_options(hot=False)
    return dataclasses.replace(
        options,
        n_gpu_layers=stock.n_gpu_layers,
        override_tensor=(*options.override_tensor, *stock.override_tensor),
    )
