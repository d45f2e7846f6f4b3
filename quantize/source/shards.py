"""The safetensors files of one checkpoint: which tensors they hold, and what is in them.

All headers are read and checked when a checkpoint is opened, the data piece by piece when it is
asked for, so that a checkpoint of any size takes a few buffers. The scales of FP8 tensors go with
their tensors and are no tensors to anybody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, read_object, shown
from dotscli.models.tensors import Sizes, TensorSpec, naming_of, tensor_specs
from dotscli.quantize.rows.decode import decode
from dotscli.quantize.source.complete import check_sources
from dotscli.quantize.source.fp8 import apply_scales, widen
from dotscli.quantize.source.fp8_layout import Scales, paired
from dotscli.quantize.source.opened import OpenFiles
from dotscli.quantize.source.safetensors_header import MAX_NAME, ShardTensor, read_header
from dotscli.quantize.types import type_named

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARDS = 10_000
MAX_TENSORS = 1 << 17  # of all shards; dots.llm1 has 24,231, and as many scales in FP8
MAX_FILE_NAME = 255  # characters, as in most file systems
_OUTPUTS = (".gguf", ".part", ".journal")  # what may lie beside a checkpoint and be replaced


@dataclass
class Shards:
    """The tensors of one checkpoint, read-only. Safe to use from several threads.

    Attributes:
        origin: the checkpoint's folder.
        paths: the shard files in the order of their names.
        tensors: name -> where it lies, without scales.
        scales: those of the FP8 tensors, by the name of these.
    """

    origin: Path
    paths: tuple[Path, ...]
    tensors: dict[str, ShardTensor]
    scales: dict[str, Scales] = field(default_factory=dict)
    _files: OpenFiles = field(default_factory=OpenFiles)

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read and check every header of the checkpoint, and how config.json says FP8 is scaled.

        Raises:
            DotsError: no safetensors, an index that names a missing shard or one outside the
                folder, a header that does not fit its file, an index and headers that disagree, or
                FP8 tensors whose scales are not there.
        """
        index, single = folder / INDEX, folder / SINGLE
        if not folder.is_dir():
            raise DotsError(
                f"{folder} is not a folder", hint="give the folder that holds config.json"
            )
        if index.exists() and single.exists():
            raise DotsError(
                f"{folder} holds both {INDEX} and {SINGLE}, two versions of the weights",
                hint="move one of them away",
            )
        if single.exists():
            return cls(folder, (single,), *paired(folder, _collect([single])))
        if not index.exists():
            raise DotsError(
                f"{folder} holds neither {INDEX} nor {SINGLE}",
                hint="dots reads safetensors checkpoints; download all files of the model",
            )
        weight_map = _read_index(index)
        paths = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in paths if not _is_file(path)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DotsError(
                f"{index} names {missing[0]}{more}, which {folder} does not hold",
                hint="download the missing shards",
            )
        tensors = _collect(paths)
        for name, shard in weight_map.items():
            if name not in tensors or tensors[name].path.name != shard:
                raise DotsError(f"{index} puts {name} into {shard}, whose header does not have it")
        for name, tensor in tensors.items():
            if name not in weight_map:
                raise DotsError(f"{tensor.path} holds {name}, which {index.name} does not name")
        return cls(folder, tuple(paths), *paired(folder, tensors))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> Iterator[str]:
        """Every tensor's name."""
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in numpy order."""
        return self.tensors[name].entry.shape

    def dtype(self, name: str) -> str:
        """dtype as safetensors spells it: BF16, F16, F32 ..."""
        return self.tensors[name].entry.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.entry.nbytes for tensor in self.tensors.values())

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file of the folder that is no output, and the shards, wherever they lie."""
        own = (path for path in self.origin.iterdir() if path.suffix not in _OUTPUTS)
        return (*self.paths, *own)

    def specs(self, model: Sizes) -> tuple[TensorSpec, ...]:
        """Every tensor of the model, with its sources here.

        Raises:
            DotsError: tensors missing, superfluous, of a wrong shape or dtype, five of them named.
        """
        specs = tensor_specs(model, naming_of(self.names()))
        entries = {name: tensor.entry for name, tensor in self.tensors.items()}
        check_sources(self.origin, specs, entries, self.scales)
        return specs

    def row_nbytes(self, name: str) -> int:
        """Bytes of one row."""
        entry = self.tensors[name].entry
        return entry.nbytes // int(np.prod(entry.shape[:-1]))

    def read(self, name: str, start: int, nbytes: int) -> memoryview:
        """Bytes start .. start + nbytes of a tensor, valid until this thread reads again.

        Raises DotsError if the file became shorter since it was opened.
        """
        return self._read(name, self.tensors[name], start, nbytes)

    def floats(self, name: str, start: int, nbytes: int) -> NDArray[np.float32]:
        """The weights in these bytes, whole rows; see `dotscli.quantize.source.source`."""
        scales, entry = self.scales.get(name), self.tensors[name].entry
        stored = self.read(name, start, nbytes)
        if scales is None:
            return decode(stored, type_named(entry.dtype))
        floats = widen(stored, entry.dtype).reshape(-1, entry.shape[-1])
        first = start // entry.shape[-1]
        apply_scales(floats, self._scales(scales, first, len(floats)), scales.grid, first)
        return floats.reshape(-1)

    def places(self, name: str) -> tuple[tuple[Path, str], ...]:
        """The shard and header entry of a tensor, and those of its scales."""
        scales = self.scales.get(name)
        tensors = (self.tensors[name], *((scales.tensor,) if scales else ()))
        return tuple((tensor.path, f"{tensor.entry}") for tensor in tensors)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _read(self, name: str, tensor: ShardTensor, start: int, nbytes: int) -> memoryview:
        if not 0 <= start <= start + nbytes <= tensor.entry.nbytes:
            raise ValueError(f"{name}: {start}+{nbytes} of {tensor.entry.nbytes} bytes")
        return self._files.read(tensor.path, tensor.entry.start + start, nbytes)

    def _scales(self, scales: Scales, first_row: int, n_rows: int) -> NDArray[np.float32]:
        """The scales of some rows, (blocks down, blocks across); DotsError if one can't be."""
        entry, grid = scales.tensor.entry, scales.grid
        first = first_row // grid.rows
        n_down = (first_row + n_rows - 1) // grid.rows - first + 1
        n_across = entry.shape[1] if len(entry.shape) > 1 else 1
        row = entry.nbytes // int(np.prod(entry.shape, dtype=int)) * n_across
        stored = self._read(scales.name, scales.tensor, first * row, n_down * row)
        values = decode(stored, type_named(entry.dtype)).reshape(n_down, n_across)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            down, across = (int(place[0]) for place in np.nonzero(bad))
            raise DotsError(
                f"{scales.tensor.path}: {scales.name} holds {values[down, across]:g} in row "
                f"{first + down}, column {across}; scales must be finite and positive",
                hint="the checkpoint is damaged; download the shard again",
            )
        return values


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long in bytes, a folder that may not be looked into
        return False


def _read_index(path: Path) -> dict[str, str]:
    """tensor -> shard file name; every name is checked to be a plain file name."""
    weight_map: dict[str, str] = {}
    for name, shard in Values(read_object(path), str(path)).section("weight_map").values.items():
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise DotsError(f"{path}: weight_map has a tensor named {shown(name)}")
        if (
            not isinstance(shard, str)
            or len(shard) > MAX_FILE_NAME
            or not shard.endswith(".safetensors")
            or not shard.isprintable()
            or shard != os.path.basename(shard)  # noqa: PTH119  # the string itself is judged
            or "\\" in shard
            or ":" in shard
        ):
            raise DotsError(
                f"{path}: {shown(name)} lies in {shown(shard)}, expected a .safetensors file "
                "beside the index"
            )
        weight_map[name] = shard
    if not weight_map:
        raise DotsError(f"{path}: weight_map names no tensor")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise DotsError(f"{path}: weight_map names more than {MAX_SHARDS} shards")
    return weight_map


def _collect(paths: Sequence[Path]) -> dict[str, ShardTensor]:
    tensors: dict[str, ShardTensor] = {}
    for path in paths:
        for entry in read_header(path):
            if len(tensors) >= MAX_TENSORS:
                raise DotsError(f"{path}: the shards hold more than {MAX_TENSORS} tensors")
            if entry.name in tensors:
                other = tensors[entry.name].path.name
                raise DotsError(f"{path}: {entry.name} is also in {other}")
            tensors[entry.name] = ShardTensor(path, entry)
    return tensors
