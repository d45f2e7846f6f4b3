"""Encoder: from a job to the bytes that belong into the file, and to the error in them.

Every thread has its own codec and buffer; the shards are shared. Where the bytes go is not known
here, so that writing a file and comparing with one are the same work.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.quantize.codec import BadValue, Codec
from dotscli.quantize.error import ErrorAndPower, source_error
from dotscli.quantize.jobs import Job, piece_weights
from dotscli.quantize.plan import Plan
from dotscli.quantize.shards import Shards


class Importance(Protocol):
    """Weights of columns, as `dotscli.quantize.importance.ImportanceMatrix` has them."""

    def row(self, name: str, expert: int) -> NDArray[np.float32] | None:
        """One weight per column of that expert, or None if nothing is known of the tensor."""


class Encoder:
    """Makes the bytes of jobs; safe to use from several threads.

    Args:
        weights: the most weights in a job.
    """

    def __init__(
        self, plan: Plan, shards: Shards, importance: Importance | None, weights: int
    ) -> None:
        self.plan = plan
        self.shards = shards
        self._importance = importance
        self._weights = weights
        self._local = threading.local()

    def encode(self, job: Job) -> memoryview:
        """The job's bytes, valid until this thread's next call.

        Raises:
            DotsError: a weight is not finite or too large for its type.
        """
        tensor = self.plan.tensors[job.tensor]
        out = self._buffer(job.out_nbytes)
        columns = self._columns(job)
        view = self.shards.view(job.source, job.start, job.nbytes)
        dtype = self.shards.dtype(job.source)
        n_columns = tensor.shape[-1]
        try:
            self._local.codec.encode(view, dtype, n_columns, tensor.type, out, columns)
        except BadValue as bad:
            row, column = divmod(bad.index, n_columns)
            reason = "is not finite" if not np.isfinite(bad.value) else "is too large"
            raise DotsError(
                f"{self.shards.tensors[job.source].path}: {job.source} holds {bad.value:g} in row "
                f"{job.first_row + row}, column {column}: it {reason} for {tensor.name} "
                f"(expert {job.expert}) as {tensor.type}",
                hint="the checkpoint is damaged; download the shard again",
            ) from None
        finally:
            view.release()
        self.shards.give_back(job.source, job.start, job.nbytes)
        return out[: job.out_nbytes].data

    def error(self, job: Job, data: bytes | memoryview) -> ErrorAndPower:
        """How far the job's bytes, as a file holds them, are from its weights; weighted by the
        importance of the columns, where there is one (see `dotscli.quantize.error`).
        """
        tensor = self.plan.tensors[job.tensor]
        view = self.shards.view(job.source, job.start, job.nbytes)
        try:
            return source_error(
                tensor.type, view, self.shards.dtype(job.source), tensor.shape[-1], data,
                self._columns(job),
            )  # fmt: skip
        finally:
            view.release()
            self.shards.give_back(job.source, job.start, job.nbytes)

    def weighted(self, index: int) -> bool:
        """Whether something is known of the importance of a tensor's columns."""
        name = self.plan.tensors[index].name
        return self._importance is not None and self._importance.row(name, 0) is not None

    def _columns(self, job: Job) -> NDArray[np.float32] | None:
        if self._importance is None:
            return None
        return self._importance.row(self.plan.tensors[job.tensor].name, job.expert)

    def _buffer(self, nbytes: int) -> NDArray[np.uint8]:
        local = self._local
        if not hasattr(local, "codec"):
            local.codec = Codec(piece_weights(self._weights))
            local.out = np.empty(0, np.uint8)
        if local.out.size < nbytes:
            local.out = np.empty(nbytes, np.uint8)
        buffer: NDArray[np.uint8] = local.out
        return buffer
