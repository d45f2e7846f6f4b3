"""The seam of hot experts: what the engine needs of whatever keeps experts on a device.

Pure declarations. `dotscli.hot.backend` has the implementation that runs under llama.cpp; another
expert cache is another module there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class HotLayer:
    """A MoE layer as the backend sees it; `off` means that the device failed in this layer."""

    layer: int
    n_experts: int
    n_slots: int
    n_resident: int
    expert_nbytes: int
    off: bool


@dataclass(frozen=True)
class ExpertBytes:
    """Where the experts of one weight of a layer lie, one behind the other.

    Attributes:
        part: 0 for up, 1 for gate, 2 for down.
        file: an index into the model's files.
        offset: of the first expert, in bytes from the file's beginning.
        expert_nbytes: of one expert.
    """

    layer: int
    part: int
    file: int
    offset: int
    expert_nbytes: int
    n_experts: int


@dataclass(frozen=True)
class RamCounters:
    """What the memory tier has done since the load, and what it holds.

    A hit is a pair of a token and an expert that was in main memory when the token came. Of
    `read_experts`, `reread_experts` had been read for the same batch before; of `read_nbytes`,
    `ahead_nbytes` were read before anybody waited; `wait_ns` is what computing threads have waited
    for the disk. `direct`: past the page cache.
    """

    decode_hits: int
    decode_misses: int
    prefill_hits: int
    prefill_misses: int
    read_experts: int
    reread_experts: int
    read_nbytes: int
    ahead_nbytes: int
    wait_ns: int
    resident_nbytes: int
    resident_experts: int
    direct: bool


@dataclass(frozen=True)
class HotCounters:
    """Sums since the model was loaded; a pair is one token at one of its experts.

    `decode` are batches of up to 8 tokens. `direct_nbytes`, of those uploaded and streamed, weren't
    staged in pinned memory; `spared_layers` had a thread fewer, as another one was uploading.
    `device_ns` is what the computing thread spent on handing work to the device and waiting for it,
    `wait_ns` the part of it after the CPU was done.
    """

    decode_hits: int
    decode_misses: int
    prefill_hits: int
    prefill_misses: int
    uploads: int
    uploaded_nbytes: int
    streamed_experts: int
    streamed_nbytes: int
    direct_nbytes: int
    spared_layers: int
    cpu_ns: int
    device_ns: int
    wait_ns: int

    @property
    def decode_hit_rate(self) -> float:
        """Share of pairs computed on the device while decoding; 0 before the first token."""
        n_pairs = self.decode_hits + self.decode_misses
        return self.decode_hits / n_pairs if n_pairs else 0.0


class Trial(enum.IntEnum):
    """How tokens are computed for a comparison; during one nothing is counted as heat."""

    NONE, DIVIDED, ON_CPU = range(3)


class ExpertCache(Protocol):
    """The hot experts of one model that is being loaded, or is loaded.

    `loaded` ends the load, `close` follows when the model itself is freed. Methods raise DotsError
    where the device refuses; the experts concerned then stay on the CPU. All but `loaded` and
    `close` may be called while tokens are computed, `place` and `set_residents` from any thread.
    """

    @property
    def placements(self) -> Sequence[tuple[str, int]]:
        """Pattern of tensor names and address of a buffer type: where a load puts the experts."""

    def loaded(self) -> None:
        """Ends the load, also one that failed."""

    def close(self) -> None:
        """Gives everything on the device back; harmless when done twice."""

    def layers(self) -> Sequence[HotLayer]:
        """The MoE layers whose experts it holds, in order."""

    def reserve(self, layer: int, n_slots: int) -> None:
        """Makes room for so many experts of a layer on the device."""

    def place(self, layer: int, slot: int, expert: int) -> None:
        """Copies an expert into a slot, in place of the one there; -1 empties the slot."""

    def residents(self, layer: int) -> Sequence[int]:
        """The expert in each slot of a layer, -1 for an empty slot."""

    def set_residents(self, layer: int, experts: Sequence[int]) -> None:
        """Exchanges as few slots as it takes to have exactly these experts resident."""

    def has_residents(self) -> bool:
        """Whether any expert is on the device."""

    def set_trial(self, trial: Trial) -> None:
        """Computes from here on as a comparison needs it."""

    def counters(self) -> HotCounters:
        """Sums since the model was loaded."""

    def heat(self) -> dict[int, tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        """Layer -> tokens routed to each expert, decoding and in prompts; each [n_experts]."""

    def trace(self, path: Path | None) -> None:
        """Writes the routed ids of every batch to a file; None ends the trace."""

    def messages(self) -> Sequence[str]:
        """What was switched off and why, each sentence once."""

    def read_from(self, files: Sequence[Path], parts: Sequence[ExpertBytes]) -> None:
        """Before the load: experts of these are read from the files when they are needed.

        Raises:
            DotsError: a file that can't be read so, or bytes outside of it.
        """

    def n_tiered(self) -> int:
        """After the load: layers whose experts are read when they are needed."""

    def set_ram(self, nbytes: int) -> None:
        """Memory that their experts may take from now on; at first there is none."""

    def warm(self, heat: Mapping[int, Sequence[float]], order: Sequence[tuple[int, int]]) -> None:
        """What earlier runs have used, in tokens, and (layer, expert) to read while it is quiet."""

    def ram(self) -> RamCounters:
        """What has been read and what is there."""

    def failure(self) -> str:
        """Why the last computation failed, told once; empty if nothing is known."""
