"""Encoder: from a job to the bytes that belong into the file, and to the error in them.

Every thread has its own codec and buffer; the input is shared. Where the bytes go is not known
here, so that writing a file and comparing with one are the same work.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.quantize.jobs import Job, piece_size
from dotscli.quantize.plan import Plan
from dotscli.quantize.rows.codec import BadValue, Codec
from dotscli.quantize.rows.error import ErrorAndPower, source_error
from dotscli.quantize.rows.valid import first_unsound
from dotscli.quantize.source.source import Source
from dotscli.quantize.types import DTYPES


class Importance(Protocol):
    """Weights of columns, as `dotscli.quantize.imatrix.importance.ImportanceMatrix` has them."""

    def row(self, name: str, expert: int) -> NDArray[np.float32] | None:
        """One weight per column of that expert, or None if nothing is known of the tensor."""


class Encoder:
    """Makes the bytes of jobs; safe to use from several threads.

    Args:
        source: what the plan's tensors are made from.
        job_size: the most weights in a job.
    """

    def __init__(
        self, plan: Plan, source: Source, importance: Importance | None, job_size: int
    ) -> None:
        self.plan = plan
        self.source = source
        self._importance = importance
        self.job_size = job_size
        self._local = threading.local()

    def encode(self, job: Job) -> memoryview:
        """The job's bytes, valid until this thread's next call.

        Raises:
            DotsError: a weight is not finite or too large for its type.
        """
        tensor = self.plan.tensors[job.tensor]
        out = self._buffer(job.out_nbytes)
        if tensor.type.quantized and self.source.dtype(job.source_tensor) == tensor.type.name:
            self._copy(job, out)
            return out[: job.out_nbytes].data
        n_columns, columns = tensor.spec.n_columns, self._columns(job)
        for rows, data, dtype in self._pieces(job):
            try:
                self._local.codec.encode(data, dtype, n_columns, tensor.type, out[rows], columns)
            except BadValue as bad:
                raise self._refused(bad, job, rows) from None
        return out[: job.out_nbytes].data

    def error(self, job: Job, data: bytes | memoryview) -> ErrorAndPower:
        """How far the job's bytes, as a file holds them, are from its weights; weighted by the
        importance of the columns, where there is one (see `dotscli.quantize.rows.error`).
        """
        tensor = self.plan.tensors[job.tensor]
        n_columns, columns = tensor.spec.n_columns, self._columns(job)
        error = power = 0.0
        for rows, piece, dtype in self._pieces(job):
            more = source_error(
                tensor.type, piece, dtype, n_columns, memoryview(data)[rows], columns
            )
            error, power = error + more[0], power + more[1]
        return error, power

    def weighted(self, index: int) -> bool:
        """Whether something is known of the importance of a tensor's columns."""
        name = self.plan.tensors[index].name
        return self._importance is not None and self._importance.row(name, 0) is not None

    def _columns(self, job: Job) -> NDArray[np.float32] | None:
        if self._importance is None:
            return None
        return self._importance.row(self.plan.tensors[job.tensor].name, job.expert)

    def _copy(self, job: Job, out: NDArray[np.uint8]) -> None:
        """A tensor that is stored as the output wants it; quantized again, it would change."""
        stored = self.source.read(job.source_tensor, job.start, job.nbytes)
        out[: job.out_nbytes] = np.frombuffer(stored, np.uint8)
        tensor = self.plan.tensors[job.tensor]
        kind = tensor.type
        bad = first_unsound(out[: job.out_nbytes].data, kind)
        if bad is not None:
            path, _ = self.source.places(job.source_tensor)[0]
            row = job.first_row + bad * kind.block // tensor.spec.n_columns
            raise DotsError(
                f"{path}: {job.source_tensor} holds a {kind} block whose scale is not finite in "
                f"row {row} (expert {job.expert})",
                hint="the input is damaged; download or make it again",
            )

    def _pieces(self, job: Job) -> Iterator[tuple[slice, memoryview, str]]:
        """The job as the codec reads it: where it goes in the output, bytes, dtype.

        Plain floats come as they are stored, everything else as F32, so many rows at a time that
        they stay in a core's cache.
        """
        dtype = self.source.dtype(job.source_tensor)
        if dtype in DTYPES:
            stored = self.source.read(job.source_tensor, job.start, job.nbytes)
            yield slice(0, job.out_nbytes), stored, dtype
            return
        tensor = self.plan.tensors[job.tensor]
        row_in, row_out = self.source.row_nbytes(job.source_tensor), tensor.row_nbytes
        n_rows = max(1, piece_size(self.job_size) // tensor.spec.n_columns)
        for row in range(0, job.nbytes // row_in, n_rows):
            nbytes = min(n_rows * row_in, job.nbytes - row * row_in)
            floats = self.source.floats(job.source_tensor, job.start + row * row_in, nbytes)
            rows = slice(row * row_out, row * row_out + nbytes // row_in * row_out)
            yield rows, floats.data.cast("B"), "F32"

    def _refused(self, bad: BadValue, job: Job, rows: slice) -> DotsError:
        tensor = self.plan.tensors[job.tensor]
        row, column = divmod(bad.index, tensor.spec.n_columns)
        row += job.first_row + rows.start // tensor.row_nbytes
        reason = "is not finite" if not np.isfinite(bad.value) else "is too large"
        path, _ = self.source.places(job.source_tensor)[0]
        return DotsError(
            f"{path}: {job.source_tensor} holds {bad.value:g} in row {row}, column {column}: it "
            f"{reason} for {tensor.name} (expert {job.expert}) as {tensor.type}",
            hint="the input is damaged; download it again",
        )

    def _buffer(self, nbytes: int) -> NDArray[np.uint8]:
        local = self._local
        if not hasattr(local, "codec"):
            local.codec = Codec(piece_size(self.job_size))
            local.out = np.empty(0, np.uint8)
        if local.out.size < nbytes:
            local.out = np.empty(nbytes, np.uint8)
        buffer: NDArray[np.uint8] = local.out
        return buffer
