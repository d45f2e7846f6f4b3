"""The expert cache of a load: hot experts on a device, a memory tier over the file, or both.

One cache of the backend serves both. It is opened before llama.cpp loads the model, and what goes
wrong while it is opened leaves everything as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dotscli.engine.hot.choice import HotChoice, kept_heat
from dotscli.engine.load_plan import LoadPlan
from dotscli.engine.options import EngineOptions
from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufFile

if TYPE_CHECKING:
    from dotscli.engine.hot.experts import HotExperts
    from dotscli.engine.hot.tier import MemoryTier
    from dotscli.hot.expert_cache import ExpertCache


@dataclass(frozen=True)
class Opened:
    """The cache, None where there is none, and who uses it."""

    cache: ExpertCache | None = None
    hot: HotExperts | None = None
    tier: MemoryTier | None = None

    @property
    def placements(self) -> Sequence[tuple[str, int]]:
        """Pattern and address of a buffer type: where experts go unless options say otherwise.

        Without hot experts that is the device of their layer, but for those that are tiered.
        """
        return self.cache.placements if self.cache and self.hot else ()


def open_experts(
    gguf: GgufFile,
    plan: LoadPlan,
    options: EngineOptions,
    choice: HotChoice | None,
    warn: Callable[[str], None],
) -> Opened:
    """Opens what the plan and the choice ask for.

    Raises:
        DotsError: experts can't be read from the files. A device that can't be used is a warning.
    """
    if choice is None and not plan.tiered:
        return Opened()
    from dotscli.engine.hot.experts import HotExperts  # with numpy, which stock needs not wait for
    from dotscli.hot import backend

    cache: ExpertCache | None = None
    hot = None
    if choice is not None:
        try:
            cache = backend.open_cache(choice.device.name)
            hot = HotExperts(choice, cache, warn)
        except DotsError as error:
            warn(f"hot experts are off: {error.message}")
    if not plan.tiered:
        return Opened(cache, hot)
    cache = cache or backend.open_cache(None)
    try:
        from dotscli.engine.hot.tier import MemoryTier

        limit = None if options.ram_nbytes is None else plan.memory.use.experts
        kept = choice.kept if choice else kept_heat(gguf, plan.cost, options.hot, warn)
        owned = hot is None
        tier = MemoryTier(cache, gguf, plan.cost, plan.tiered, limit, kept, owned=owned, warn=warn)
    except BaseException:
        cache.loaded()
        cache.close()
        raise
    return Opened(cache, hot, tier)
