"""Source: what quantizing needs of its input, whether that is a checkpoint or a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dotscli.models.tensors import Sizes, TensorSpec


class Source(Protocol):
    """The tensors of one model, read-only and safe to use from several threads.

    Attributes:
        origin: the folder or file that the user named.
        paths: the files that hold the tensors.
        inputs: everything that an output must not replace, `paths` among it.
    """

    @property
    def origin(self) -> Path: ...
    @property
    def paths(self) -> tuple[Path, ...]: ...
    @property
    def inputs(self) -> tuple[Path, ...]: ...

    def specs(self, model: Sizes) -> tuple[TensorSpec, ...]:
        """Every tensor of the model and what it is made from; DotsError if that isn't all here."""

    def dtype(self, name: str) -> str:
        """How a tensor is stored: BF16, F8_E4M3, Q8_0 ..."""

    def row_nbytes(self, name: str) -> int:
        """Bytes of one stored row."""

    def read(self, name: str, start: int, nbytes: int) -> memoryview:
        """Bytes of a tensor as they are stored, valid until this thread reads again.

        Raises:
            DotsError: the file became shorter, or can't be read.
        """

    def floats(self, name: str, start: int, nbytes: int) -> NDArray[np.float32]:
        """The weights in some whole rows, given by their stored bytes; flat, one after the other.

        Raises:
            DotsError: scales that are no scales; a file that became shorter, or can't be read.
        """

    def places(self, name: str) -> tuple[tuple[Path, str], ...]:
        """The files that a tensor comes from, each with what its header says of the tensor."""

    def close(self) -> None:
        """Let the files go."""
