"""The safetensors files of one checkpoint: which tensors they hold, and their bytes, mapped.

All headers are read and checked when a checkpoint is opened; the data is mapped into memory when
it is first asked for, and given back piece by piece, so that a checkpoint of any size takes a few
pages. Names are those of the checkpoint; what they mean is not known here.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, read_object, shown
from dotscli.quantize.safetensors_header import Entry, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARDS = 10_000
_WINDOW_NBYTES = 1 << 16  # what Linux maps around a fault (fault_around_bytes)


@dataclass(frozen=True)
class ShardTensor:
    """Where one tensor lies: its file and the checked entry of that file's header."""

    path: Path
    entry: Entry


@dataclass
class Shards:
    """The tensors of one checkpoint, read-only. Safe to use from several threads.

    Attributes:
        folder: the checkpoint.
        paths: the shard files in the order of their names.
        tensors: name -> where it lies.
    """

    folder: Path
    paths: tuple[Path, ...]
    tensors: dict[str, ShardTensor]
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read and check every header of the checkpoint.

        Raises:
            DotsError: no safetensors, an index that names a missing shard or one outside the
                folder, a header that does not fit its file, or an index and headers that disagree.
        """
        index, single = folder / INDEX, folder / SINGLE
        if not folder.is_dir():
            raise DotsError(f"{folder} is no folder", hint="give the folder that holds config.json")
        if index.exists() and single.exists():
            raise DotsError(
                f"{folder} holds both {INDEX} and {SINGLE}, two versions of the weights",
                hint="move one of them away",
            )
        if single.exists():
            return cls(folder, (single,), _collect([single]))
        if not index.exists():
            raise DotsError(
                f"{folder} holds neither {INDEX} nor {SINGLE}",
                hint="dots reads safetensors checkpoints; download all files of the model",
            )
        weight_map = _read_index(index)
        paths = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in paths if not path.is_file()]
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
        return cls(folder, tuple(paths), tensors)

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

    def view(self, name: str, start: int, nbytes: int) -> memoryview:
        """Bytes start .. start + nbytes of a tensor, without a copy.

        Raises DotsError if the file became shorter since it was opened.
        """
        tensor = self.tensors[name]
        if not 0 <= start <= start + nbytes <= tensor.entry.nbytes:
            raise ValueError(f"{name}: {start}+{nbytes} of {tensor.entry.nbytes} bytes")
        first = tensor.entry.start + start
        mapped = self._map(tensor.path)
        if first + nbytes > len(mapped):
            raise DotsError(f"{tensor.path} became shorter while it was being read")
        return memoryview(mapped)[first : first + nbytes]

    def give_back(self, name: str, start: int, nbytes: int) -> None:
        """Tell the kernel that these bytes are done with, so that they stop counting as ours.

        Whole windows go, neighbours' bytes in them too: the next `view` of those maps the page
        cache again. Less would not do, because a fault maps the pages around it, so that a
        neighbour's first access brings back the end of this range.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        tensor = self.tensors[name]
        at = tensor.entry.start + start
        first = at // _WINDOW_NBYTES * _WINDOW_NBYTES
        end = -(-(at + nbytes) // _WINDOW_NBYTES) * _WINDOW_NBYTES
        mapped = self._map(tensor.path)
        mapped.madvise(mmap.MADV_DONTNEED, first, min(end, len(mapped)) - first)

    def close(self) -> None:
        """Unmap the files; one that still has views goes when the last of them does."""
        with self._lock:
            for mapped in self._maps.values():
                with contextlib.suppress(BufferError):
                    mapped.close()
            self._maps.clear()

    def _map(self, path: Path) -> mmap.mmap:
        with self._lock:
            mapped = self._maps.get(path)
            if mapped is None:
                try:
                    with path.open("rb") as file:
                        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError as error:
                    raise DotsError(f"{path} can't be mapped: {error.strerror}") from None
                if hasattr(mmap, "MADV_SEQUENTIAL"):
                    mapped.madvise(mmap.MADV_SEQUENTIAL)
                self._maps[path] = mapped
            return mapped


def _read_index(path: Path) -> dict[str, str]:
    """tensor -> shard file name; every name is checked to be a plain file name."""
    weight_map: dict[str, str] = {}
    for name, shard in Values(read_object(path), str(path)).section("weight_map").values.items():
        if (
            not isinstance(shard, str)
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
            if entry.name in tensors:
                other = tensors[entry.name].path.name
                raise DotsError(f"{path}: {entry.name} is also in {other}")
            tensors[entry.name] = ShardTensor(path, entry)
    return tensors
