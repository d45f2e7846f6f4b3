"""What one memory is used for, and whether a model can be loaded into it: plain figures in bytes.

`dots plan` and a load both ask `main_memory`: what one says the other does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

GIB = 1 << 30
# Left free of any memory: what llama.cpp's own --fit leaves, less on small devices.
MARGIN, MARGIN_SHARE = GIB, 8
# Contexts that nobody asked for, in tokens: what experts may not be given the memory of, what is
# still worth a load, and the steps between.
SHORT_CTX, SHORTEST_CTX, CTX_STEP = 2048, 512, 256  # llama.cpp rounds up to whole steps


class Verdict(str, Enum):
    """What a placement comes to.

    FITS: every weight has a place in a memory; nothing is read twice.
    TIER: some experts stay on the disk, and those in main memory take turns.
    TOO_SMALL: not even the dense weights, the cache, the buffers and one layer's experts fit.
    """

    FITS = "fits"
    TIER = "tier"
    TOO_SMALL = "too small"


def margin_nbytes(total: int) -> int:
    """What is left free of a memory: 1 GiB, or an eighth where that is less."""
    return min(MARGIN, total // MARGIN_SHARE)


@dataclass(frozen=True)
class Use:
    """What one memory is used for, in bytes; `needed` may exceed `total`, in main memory only.

    `experts`: routed experts that have a place here for good, or in turn.
    """

    total: int
    dense: int = 0
    kv: int = 0
    compute: int = 0
    experts: int = 0
    margin: int = 0

    @property
    def needed(self) -> int:
        """All of it, with the margin."""
        return self.dense + self.kv + self.compute + self.experts + self.margin

    @property
    def free(self) -> int:
        """What is left; 0 where more is needed than there is."""
        return max(0, self.total - self.needed)

    @property
    def missing(self) -> int:
        """What doesn't fit."""
        return max(0, self.needed - self.total)


@dataclass(frozen=True)
class MainMemory:
    """What a load makes of main memory. `disk`: bytes of experts that have no place in any."""

    use: Use
    disk: int

    @property
    def verdict(self) -> Verdict:
        """Whether it can be loaded, and how."""
        if self.use.missing:
            return Verdict.TOO_SMALL
        return Verdict.TIER if self.disk else Verdict.FITS

    @property
    def may_repack(self) -> bool:
        """Whether there is room for the copy that llama.cpp makes of weights in main memory."""
        return self.verdict is Verdict.FITS and self.use.dense + self.use.experts <= self.use.free


def main_memory(use: Use, cold: Collection[int]) -> MainMemory:
    """Gives the experts that are on no device as much room as there is.

    Args:
        use: with everything but these experts.
        cold: their bytes, layer by layer. A batch may need all of a layer at once, so less than
            the largest layer is of no use.
    """
    nbytes = sum(cold)
    room = min(nbytes, max(use.free, max(cold, default=0)))
    return MainMemory(replace(use, experts=room), nbytes - room)
