"""The door to the native hot-expert backend: whether there is one, and a model opened with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dotscli.hot.expert_cache import ExpertCache


def unavailable() -> str:
    """Why hot experts can't be used here, in one line; empty if they can."""
    from dotscli.hot.backend import plugin

    return plugin.unavailable()


def open_cache(device: str | None) -> ExpertCache:
    """Begin to load a model whose hot experts will live on a device, by its ggml name, or on none.

    Raises:
        DotsError: no such device, another model is being loaded, or there is no backend here.
    """
    from dotscli.hot.backend import plugin

    return plugin.backend().open(device)
