"""What one memory is used for: plain figures in bytes, which may exceed what there is."""

from __future__ import annotations

from dataclasses import dataclass


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
