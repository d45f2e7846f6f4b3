"""Checksums of what a GGUF holds: one for each expert's matrix, kept in the file's own metadata.

The key dots.checksum.blake2b is an array of u64: the header (with this array as zeros), the list of
tensors, then every matrix in the order of the file, so that a flipped bit is found and its expert
named with nothing but the file. Its length follows from the plan, so the header has its final size
before a weight is read. They guard against damage, not against somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence

from dotscli.models.metadata import KeyValue
from dotscli.quantize.output.gguf_header import gguf_header, tensor_infos, unpadded_nbytes
from dotscli.quantize.plan import TensorPlan

KEY = "dots.checksum.blake2b"
N_HEADER = 2  # values before those of the matrices: the header, the list of tensors
PIECE_NBYTES = 1 << 20  # read and hashed at a time

Read = Callable[[int, int, int], bytes]  # tensor, first byte in it, how many


def checksum(pieces: Iterable[bytes | memoryview]) -> int:
    """The first 64 bits of BLAKE2b, little-endian."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return int.from_bytes(digest.digest(), "little")


def checked_header(
    keys: Sequence[KeyValue], tensors: Sequence[TensorPlan], matrices: Sequence[int] | None
) -> bytes:
    """The header of a file with its checksums in it.

    Args:
        matrices: the checksum of every matrix; None for a header of the same size without them.
    """
    count = N_HEADER + sum(tensor.spec.n_experts for tensor in tensors)
    empty = gguf_header((*keys, _key([0] * count)), tensors)
    if matrices is None:
        return empty
    values = [checksum([empty]), checksum([tensor_infos(tensors)]), *matrices]
    if len(values) != count:
        raise ValueError(f"{len(values)} checksums, expected {count}")
    return gguf_header((*keys, _key(values)), tensors)


def unpadded_checked_nbytes(keys: Sequence[KeyValue]) -> int:
    """Bytes of a header with checksums, as yet without tensors and without padding."""
    return unpadded_nbytes((*keys, _key([0] * N_HEADER)))


def _key(values: Sequence[int]) -> KeyValue:
    return KeyValue(KEY, "arr[u64]", tuple(values))


def tensor_checksums(read: Read, index: int, tensor: TensorPlan) -> tuple[int, ...]:
    """Of every matrix of a tensor that is written."""
    nbytes = tensor.matrix_nbytes
    return tuple(
        matrix_checksum(read, index, expert * nbytes, nbytes)
        for expert in range(tensor.spec.n_experts)
    )


def matrix_checksum(read: Read, index: int, start: int, nbytes: int) -> int:
    """Of one matrix, read in pieces."""
    return checksum(
        read(index, start + at, min(PIECE_NBYTES, nbytes - at))
        for at in range(0, nbytes, PIECE_NBYTES)
    )


class Sums:
    """Checksums of matrices that threads write in pieces and in any order.

    Whoever writes the last piece of a matrix reads the whole of it back, out of the page cache:
    that costs a tenth of the hashing, and the checksum does not depend on how the work was cut.
    """

    def __init__(self, tensors: Sequence[TensorPlan], read: Read) -> None:
        self._tensors = tensors
        self._read = read
        self._left: dict[tuple[int, int], int] = {}
        self._sums: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def written(self, index: int, expert: int, data: memoryview) -> None:
        """Some bytes of a matrix are in the file."""
        tensor = self._tensors[index]
        nbytes = tensor.matrix_nbytes
        if len(data) == nbytes:
            self._sums[index, expert] = checksum([data])
            return
        with self._lock:
            left = self._left.pop((index, expert), nbytes) - len(data)
            if left:
                self._left[index, expert] = left
                return
        self._sums[index, expert] = matrix_checksum(self._read, index, expert * nbytes, nbytes)

    def take(self, index: int) -> tuple[int, ...]:
        """Those of a tensor that is completely written; they are forgotten here."""
        n_experts = self._tensors[index].spec.n_experts
        return tuple(self._sums.pop((index, expert)) for expert in range(n_experts))
