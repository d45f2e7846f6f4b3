"""The tensors of a dots1 GGUF as something to quantize: read and dequantized piece by piece.

Every type that llama.cpp can run dots1 with is read, since its own functions dequantize. The file
is checked as `dotscli.models.check` does before llama.cpp may see one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.models.check import check_dots1, sizes_of
from dotscli.models.gguf_file import GgufFile, GgufTensor, read_gguf, read_one
from dotscli.models.gguf_type import TENSOR_TYPES, TensorType
from dotscli.models.tensors import Naming, Sizes, SourceTensor, TensorSpec, tensor_specs
from dotscli.quantize.rows.decode import decode
from dotscli.quantize.source.opened import OpenFiles


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies: its file and its first byte there."""

    path: Path
    start: int
    tensor: GgufTensor

    @property
    def type(self) -> TensorType:
        return TENSOR_TYPES[self.tensor.type_id]


@dataclass
class GgufSource:
    """The tensors of one GGUF and all its parts, as `dotscli.quantize.source.source` wants them.

    Attributes:
        gguf: the checked header.
        model: the sizes in it.
    """

    gguf: GgufFile
    model: Sizes
    _places: dict[str, _Place]
    _files: OpenFiles = field(default_factory=OpenFiles)

    @classmethod
    def open(cls, path: Path) -> GgufSource:
        """Read and check the header of a GGUF, and of its parts if it is the first of several.

        Raises:
            DotsError: no GGUF, none of dots1, or damaged.
        """
        gguf = read_gguf(path)
        check_dots1(gguf)
        places = {
            tensor.name: _Place(part.path, part.data_offset + tensor.offset, tensor)
            for part in map(read_one, gguf.shards)
            for tensor in part.tensors
        }
        return cls(gguf, sizes_of(gguf), places)

    @property
    def origin(self) -> Path:
        """The file, or the first of several."""
        return self.gguf.path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return self.gguf.shards

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The same: a GGUF has nothing beside it."""
        return self.gguf.shards

    def specs(self, model: Sizes) -> tuple[TensorSpec, ...]:
        """Every tensor of the model, made from the tensor of that name."""
        return tuple(
            replace(spec, sources=(self._source(spec, model),))
            for spec in tensor_specs(model, Naming.FUSED)
        )

    def dtype(self, name: str) -> str:
        """F32, BF16, Q8_0 ..."""
        return self._places[name].type.name

    def row_nbytes(self, name: str) -> int:
        """Bytes of one row."""
        place = self._places[name]
        return place.type.row_nbytes(place.tensor.shape[0])

    def read(self, name: str, start: int, nbytes: int) -> memoryview:
        """Bytes of a tensor as they are stored, valid until this thread reads again."""
        place = self._places[name]
        return self._files.read(place.path, place.start + start, nbytes)

    def floats(self, name: str, start: int, nbytes: int) -> NDArray[np.float32]:
        """The weights in these bytes, whole rows."""
        return decode(self.read(name, start, nbytes), self._places[name].type)

    def places(self, name: str) -> tuple[tuple[Path, str], ...]:
        """The file of a tensor and its line in the header."""
        place = self._places[name]
        return ((place.path, f"{place.start} {place.tensor}"),)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _source(self, spec: TensorSpec, model: Sizes) -> SourceTensor:
        if spec.name in self._places:
            return SourceTensor(spec.name, spec.shape)
        # Q, K and V of a layer in one tensor, one after the other: check_dots1 has seen it.
        joined = f"blk.{spec.layer}.attn_qkv.weight"
        n_rows = model.n_heads * model.head_dim
        first = ("q", "k", "v").index(spec.name.removesuffix(".weight")[-1]) * n_rows
        return SourceTensor(joined, (3 * n_rows, model.n_embd), (first, first + n_rows))
