"""How long a context fits: the cost of its cache against the memory that is free."""

from __future__ import annotations

from dotscli.engine.options import EngineOptions, cache_bytes
from dotscli.errors import DotsError

GIB = 1 << 30
SHORTEST, LONGEST = 4096, 32768
CACHE_SHARE = 0.25  # the rest stays for weights, compute buffers and everybody else


def bytes_per_token(n_layers: int, width: int, options: EngineOptions) -> int:
    """Bytes one token takes in the cache: a K and a V row of `width` in every layer."""
    row = cache_bytes(options.cache_type_k, width) + cache_bytes(options.cache_type_v, width)
    return n_layers * row


def context_size(n_ctx_train: int, token_bytes: int, free_bytes: int) -> int:
    """Tokens of context to ask for when the user did not say.

    At most what the model was trained on and 32,768; at least 4,096 where the model allows, even
    if memory looks short, because the figures of free memory are themselves estimates. In between
    the cache may take a quarter of what is free. A multiple of 256, as llama.cpp rounds anyway.
    """
    fits = int(free_bytes * CACHE_SHARE) // max(1, token_bytes) // 256 * 256
    return min(n_ctx_train, LONGEST, max(SHORTEST, fits))


def check_cache_fits(n_ctx: int, token_bytes: int, free_bytes: int) -> None:
    """Refuses a context whose cache alone is more than the memory there is.

    The system would grant it and then kill the process when the cache is cleared.

    Raises:
        DotsError: with both sizes.
    """
    wanted = n_ctx * token_bytes
    if wanted > free_bytes:
        raise DotsError(
            f"a context of {n_ctx} tokens needs {wanted / GIB:.1f} GiB of cache, "
            f"only {free_bytes / GIB:.1f} GiB are free",
            hint="use a smaller --ctx-size, or --cache-type-k q8_0 --cache-type-v q8_0",
        )


def free_memory(weight_bytes: int) -> int:
    """Bytes of main memory left once mapped weights of that size have come in from disk.

    Mapped weights count as available until they are touched, and they will be.
    """
    import psutil

    return max(0, int(psutil.virtual_memory().available) - weight_bytes)
