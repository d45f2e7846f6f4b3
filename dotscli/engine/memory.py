"""Memory that is free, and what a load makes of it: how long a context fits, whether weights do.

Figures are the system's and the devices' own estimates, in bytes.
"""

from __future__ import annotations

from dotscli.engine.available import available_memory
from dotscli.engine.devices import registered
from dotscli.engine.options import EngineOptions, cache_bytes
from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufFile

GIB = 1 << 30
SHORTEST, LONGEST = 4096, 32768
CACHE_SHARE = 0.25  # the rest stays for weights, compute buffers and everybody else


def bytes_per_token(n_layers: int, width: int, options: EngineOptions) -> int:
    """Bytes one token takes in the cache: a K and a V row of `width` in every layer."""
    row = cache_bytes(options.cache_type_k, width) + cache_bytes(options.cache_type_v, width)
    return n_layers * row


def context_size(
    n_ctx_train: int, token_bytes: int, free_bytes: int, shortest: int = SHORTEST
) -> int:
    """Tokens of context to ask for when the user did not say.

    At most what the model was trained on and 32,768; at least `shortest` where the model allows,
    even if memory looks short, because the figures of free memory are themselves estimates. In
    between the cache may take a quarter of what is free. A multiple of 256, as llama.cpp rounds.
    """
    fits = int(free_bytes * CACHE_SHARE) // max(1, token_bytes) // 256 * 256
    return min(n_ctx_train, LONGEST, max(shortest, fits))


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
    return max(0, available_memory().nbytes - weight_bytes)


def gpu_memory() -> int:
    """Free bytes of all GPUs together."""
    return sum(device.free_bytes for device in registered() if device.type == "GPU")


def most_memory() -> int:
    """Bytes that a cache could take at the very most, wherever its layers lie."""
    return free_memory(0) + gpu_memory()


def cache_room(gguf: GgufFile, options: EngineOptions) -> int:
    """Free bytes where the cache will live: on the GPUs once layers do, else in main memory."""
    on_gpus = gpu_memory() if options.n_gpu_layers != 0 else 0
    return on_gpus or free_memory(weights_nbytes(gguf))  # on GPUs the weights are there already


def weights_nbytes(gguf: GgufFile) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in gguf.tensors)
