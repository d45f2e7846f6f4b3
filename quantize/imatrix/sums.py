"""The sums of a calibration while it runs: added up chunk by chunk, kept beside the output.

What is kept is NAME.part, itself an importance matrix, with keys that say what it was made of. An
interrupted run loses the chunks since the last save and nothing else; going on gives the same bytes
as never having stopped. How the sums come about is `dotscli.engine.collect`'s business.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_replaceable
from dotscli.quantize.output.part_file import part_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dotscli.quantize.imatrix.file import ImatrixFile

SAVE_S = 60.0  # seconds between saves
SAVE_SHARE = 20.0  # or so many times as long as one takes, whichever is longer
_PREFIX = "dots.calibration."


class Input(Protocol):
    """What went into some matrices of one shape: all of them read the same.

    Attributes:
        names: of the weights, e.g. blk.3.ffn_gate_exps.weight.
        sums: squares per column, float32 (n_matrices, n_columns).
        counts: rows that each matrix saw, int64 (n_matrices,).
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def sums(self) -> NDArray[np.float32]: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...


def identity(model: Path, tokens: Sequence[int], chunk_size: int) -> dict[str, str]:
    """What the sums of a chunk depend on, in words, each with a value to compare.

    How many chunks are evaluated isn't part of it: a longer run goes on where a shorter one ended.
    """
    import numpy as np

    from dotscli.models.identity import fingerprint

    digest = hashlib.blake2b(np.array(tokens, "<i4").tobytes(), digest_size=16)
    return {
        "model": fingerprint(model),
        "texts": digest.hexdigest(),
        "context": str(chunk_size),
    }


class Calibration:
    """The sums for one output.

    Args:
        out: the finished file's name.
        made_of: as `identity` has it.
        datasets: the names of the texts.
        chunk_size: tokens per chunk.
        restart: forget an interrupted run that was made of something else.

    Attributes:
        n_chunks: how many chunks are in the sums; after opening, how many an earlier run has left.

    Raises:
        DotsError: an interrupted run's sums are of other things, or damaged, or what lies in their
            place is somebody else's.
    """

    def __init__(
        self,
        out: Path,
        made_of: Mapping[str, str],
        datasets: tuple[str, ...],
        chunk_size: int,
        restart: bool = False,
    ) -> None:
        self.out = out
        self.part = part_of(out)
        self.n_chunks = 0
        self._made_of = made_of
        self._datasets = datasets
        self._chunk_size = chunk_size
        self._totals: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        self._saved_chunks = 0
        self._due = time.monotonic() + SAVE_S
        if self.part.exists() or self.part.is_symlink():
            self._resume(restart)

    def add(self, inputs: Sequence[Input]) -> None:
        """One more chunk; saves when it is time to."""
        import numpy as np

        for found in inputs:
            for name in found.names:
                if name not in self._totals:
                    self._totals[name] = np.zeros_like(found.sums), np.zeros_like(found.counts)
                sums, counts = self._totals[name]
                sums += found.sums
                counts += found.counts
        self.n_chunks += 1
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Keep what there is, unless it is kept already.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        from dotscli.models.metadata import KeyValue
        from dotscli.quantize.imatrix.file import write_imatrix

        if self.n_chunks == self._saved_chunks:
            return
        started = time.monotonic()
        keys = [KeyValue(_PREFIX + name, "str", value) for name, value in self._made_of.items()]
        write_imatrix(self.part, self._content(), keys)
        self._saved_chunks = self.n_chunks
        now = time.monotonic()
        self._due = now + max(SAVE_S, SAVE_SHARE * (now - started))

    def finish(self) -> None:
        """Write the output, and what was kept is needed no more.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        from dotscli.quantize.imatrix.file import write_imatrix

        write_imatrix(self.out, self._content())
        self.part.unlink(missing_ok=True)

    def _content(self) -> ImatrixFile:
        from dotscli.quantize.imatrix.file import Entry, ImatrixFile

        entries = {
            name: Entry(sums, counts.astype("<f4")) for name, (sums, counts) in self._totals.items()
        }
        return ImatrixFile(entries, self._datasets, self.n_chunks, self._chunk_size)

    def _resume(self, restart: bool) -> None:
        import numpy as np

        from dotscli.quantize.imatrix.file import read_imatrix

        check_replaceable(self.part, hint="move it away")
        kept: ImatrixFile | None = None
        with contextlib.suppress(DotsError):
            kept = read_imatrix(self.part)
        keys = kept.keys or {} if kept else {}
        if kept is None or not any(_PREFIX + name in keys for name in self._made_of):
            old = self.part.with_name(self.part.name + ".old")
            raise DotsError(
                f"{self.part} is not from dots calibrate, and would be overwritten",
                hint=f"move it away: mv {shlex.quote(str(self.part))} {shlex.quote(str(old))}",
            )
        changed = [
            name for name, value in self._made_of.items() if keys.get(_PREFIX + name) != value
        ]
        if changed and restart:
            return
        if changed:
            raise DotsError(
                f"{self.part} holds {kept.n_chunks} chunks of an interrupted run; changed since: "
                + ", ".join(changed),
                hint="run the original command to resume it, or use --force to start over",
            )
        self._totals = {
            name: (np.array(entry.sums), entry.counts.astype(np.int64))
            for name, entry in kept.entries.items()
        }
        self.n_chunks = self._saved_chunks = kept.n_chunks
