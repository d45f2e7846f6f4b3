"""How long a context fits: the cost of its cache against the memory that is free."""

from __future__ import annotations

from dataclasses import dataclass

from dotscli.engine.options import EngineOptions, cache_bytes

SHORTEST, LONGEST = 4096, 32768
CACHE_SHARE = 0.25  # the rest stays for weights, compute buffers and everybody else


@dataclass(frozen=True)
class CacheShape:
    """What the key-value cache of a model is made of: one K and one V row per layer and token."""

    n_layers: int
    n_embd_k: int
    n_embd_v: int

    def bytes_per_token(self, options: EngineOptions) -> int:
        """Bytes one token takes in the cache of the chosen types."""
        row = cache_bytes(options.cache_type_k, self.n_embd_k)
        row += cache_bytes(options.cache_type_v, self.n_embd_v)
        return self.n_layers * row


def context_size(n_ctx_train: int, bytes_per_token: int, free_bytes: int) -> int:
    """Tokens of context to ask for when the user did not say.

    At most what the model was trained on and 32,768; at least 4,096 where the model allows, even
    if memory looks short, because the figures of free memory are themselves estimates. In between
    the cache may take a quarter of what is free. A multiple of 256, as llama.cpp rounds anyway.
    """
    fits = int(free_bytes * CACHE_SHARE) // max(1, bytes_per_token) // 256 * 256
    return min(n_ctx_train, LONGEST, max(SHORTEST, fits))


def free_memory(weight_bytes: int) -> int:
    """Bytes of main memory left once mapped weights of that size have come in from disk.

    Mapped weights count as available until they are touched, and they will be.
    """
    import psutil

    return max(0, int(psutil.virtual_memory().available) - weight_bytes)
