"""The context of a loaded model: its cache, its batches, its threads, and what sizes are refused.

llama.cpp aborts for a cache that doesn't fit the heads, and the system ends who asks for more
memory than there is; both are refused here, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dotscli.engine.lib import llama
from dotscli.engine.log import log
from dotscli.engine.memory import bytes_per_token, check_cache_fits, most_memory
from dotscli.engine.options import CACHE_TYPES, FLASH_ATTN, MAX_OUTPUTS, EngineOptions
from dotscli.errors import DotsError
from dotscli.models.check import sizes_of
from dotscli.models.gguf_file import GgufFile

if TYPE_CHECKING:
    from dotscli.engine.collect import Collector


def check_cache(gguf: GgufFile, options: EngineOptions) -> None:
    """A quantized cache works in blocks within a head; llama.cpp aborts if they do not fit.

    Raises:
        DotsError: with what to use instead.
    """
    head_dim = sizes_of(gguf).head_dim
    for flag, kind in (("k", options.cache_type_k), ("v", options.cache_type_v)):
        block = CACHE_TYPES[kind].block
        if head_dim % block:
            raise DotsError(
                f"--cache-type-{flag} {kind} needs a head width that is a multiple of {block}, "
                f"{gguf.path} has {head_dim}",
                hint=f"use --cache-type-{flag} f16",
            )


def most_context(gguf: GgufFile, options: EngineOptions, warn: Callable[[str], None]) -> int:
    """The longest context to advise: what the model was trained for, and memory allows.

    Raises:
        DotsError: the one that was asked for is longer than all memory.
    """
    trained = number(gguf.metadata, "context_length")
    cost = token_nbytes(gguf, options)
    memory = most_memory()
    if options.n_ctx:
        if options.n_ctx > trained:
            warn(f"a context of {options.n_ctx} is longer than the {trained} of the training")
        check_cache_fits(options.n_ctx, cost, memory)
    return min(trained, memory // max(1, cost))


def token_nbytes(gguf: GgufFile, options: EngineOptions) -> int:
    """Bytes that a token of the context takes in the cache."""
    sizes = sizes_of(gguf)
    return bytes_per_token(sizes.n_layers, sizes.n_heads * sizes.head_dim, options)


def new_context(
    path: Path,
    model: Any,
    n_ctx: int,
    n_ubatch: int,
    options: EngineOptions,
    collector: Collector | None,
) -> Any:
    """A llama_context for so many tokens, `n_ubatch` of them computed at once.

    Raises:
        DotsError: llama.cpp refuses.
    """
    api = llama()
    params = api.llama_context_default_params()
    params.n_ctx = -(-n_ctx // 256) * 256  # as llama.cpp rounds, or its batch gets smaller
    params.n_batch = min(options.n_batch or n_ubatch, params.n_ctx)
    params.n_ubatch = min(n_ubatch, params.n_batch)
    params.n_outputs_max = min(MAX_OUTPUTS, params.n_batch)
    if collector is not None:
        params.cb_eval = collector.callback
        params.n_outputs_max = params.n_batch  # the last layer computes only what is put out
    params.n_threads, params.n_threads_batch = options.threads()
    params.type_k = CACHE_TYPES[options.cache_type_k].id
    params.type_v = CACHE_TYPES[options.cache_type_v].id
    params.flash_attn_type = FLASH_ATTN[options.flash_attn]
    context = api.llama_init_from_model(model, params)
    if not context:
        raise refused(
            f"{path}: llama.cpp can't create a context of {n_ctx} tokens with cache types "
            f"{options.cache_type_k} and {options.cache_type_v}"
        )
    return context


def number(metadata: Mapping[str, object], key: str) -> int:
    """A number of the model's metadata that `check_dots1` has seen to be one."""
    value = metadata[f"dots1.{key}"]
    assert isinstance(value, int)
    return value


def refused(message: str) -> DotsError:
    """What llama.cpp refused, with the last lines of its log as the reason."""
    said = log().complaints()
    return DotsError(
        message, hint=f"llama.cpp says: {'; '.join(said)}" if said else "run again with -v"
    )
