"""A file with what a context holds for some tokens, so that they need not be read again.

    8 bytes MAGIC, u32 length of the JSON, JSON {"identity", "n_tokens", "nbytes", "prefill_s"}
    i32 tokens[n_tokens]; zeros up to a multiple of 4,096
    llama.cpp's state of one sequence, nbytes
    u32 CRC-32 of every 16 MiB of the state, then 16 bytes of BLAKE2b of all that is not the state

The file appears whole or not at all. Pieces are asked for and summed up by several threads, so the
mapping is read as fast as the disk delivers (BLAKE2b takes a core for a GB per second, CRC-32 for
four). What is wrong with a file is found before llama.cpp sees a byte of it. It knows no context
and no folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.json_file import parse_object

MAGIC = b"dots-kv2"
SUFFIX = ".state"
PIECE = 16 << 20
MAX_TOKENS = 1 << 20
MAX_NBYTES = 1 << 40
MAX_JSON_NBYTES = 1 << 14
_HEAD = struct.Struct("<8sI")
_DIGEST = 16  # bytes of BLAKE2b
_SUM = 4  # bytes of CRC-32
_PAGE = 4096
_ASKED = 128 << 10  # bytes of a WILLNEED: of more, the kernel reads only what it reads ahead
_N_THREADS = 6


@dataclass(frozen=True)
class StateInfo:
    """What a file says of itself.

    Attributes:
        identity: what a context has to have in common with the one that it comes from.
        tokens: that the state stands for, in order.
        nbytes: of the state; `offset` is where it begins.
        prefill_s: seconds that reading these tokens took, for comparison.
        sums: of the pieces.
    """

    path: Path
    identity: str
    tokens: Sequence[int]
    nbytes: int
    prefill_s: float
    offset: int
    sums: bytes


def read_info(path: Path) -> StateInfo:
    """All but the state itself.

    Raises:
        DotsError: it is no such file, or damaged.
    """
    try:
        with path.open("rb") as file:
            return _info(path, file.fileno(), os.fstat(file.fileno()).st_size)
    except (DotsError, OSError, ValueError, KeyError, struct.error) as error:
        raise DotsError(f"{path} is damaged: {error}") from error


def _info(path: Path, file: int, size: int) -> StateInfo:
    head = os.pread(file, _HEAD.size, 0)
    magic, length = _HEAD.unpack(head)
    if magic != MAGIC or length > MAX_JSON_NBYTES:
        raise ValueError("it does not begin as one")
    text = os.pread(file, length, _HEAD.size)
    values = parse_object(text, str(path))
    identity, n_tokens, nbytes = values["identity"], values["n_tokens"], values["nbytes"]
    seconds = values["prefill_s"]
    if not (isinstance(identity, str) and isinstance(seconds, int | float)):
        raise ValueError("its header is none")
    if not (isinstance(n_tokens, int) and 0 < n_tokens <= MAX_TOKENS):
        raise ValueError("its number of tokens can't be")
    if not (isinstance(nbytes, int) and 0 < nbytes <= MAX_NBYTES):
        raise ValueError("its size can't be")
    offset, n_pieces = _places(length, n_tokens, nbytes)
    end = offset + nbytes + n_pieces * _SUM
    if size != end + _DIGEST:
        raise ValueError("its length is another")
    tokens = array("i", os.pread(file, 4 * n_tokens, _HEAD.size + length))
    sums = os.pread(file, n_pieces * _SUM, offset + nbytes)
    if os.pread(file, _DIGEST, end) != _whole(head + text, tokens, sums):
        raise ValueError("its checksum is another")
    return StateInfo(path, identity, tokens, nbytes, float(seconds), offset, sums)


def _places(json_nbytes: int, n_tokens: int, nbytes: int) -> tuple[int, int]:
    """Where the state begins, and of how many pieces it is."""
    before = _HEAD.size + json_nbytes + 4 * n_tokens
    return -(-before // _PAGE) * _PAGE, -(-nbytes // PIECE)


def _whole(head: bytes, tokens: array[int], sums: bytes) -> bytes:
    found = hashlib.blake2b(head, digest_size=_DIGEST)
    found.update(tokens)
    found.update(sums)
    return found.digest()


def _sums(state: memoryview, ask: Callable[[int, int], None] = lambda at, nbytes: None) -> bytes:
    """The sums of all pieces; summing up lets other threads run.

    Args:
        ask: for bytes of the state that will be read next.
    """

    def one(at: int) -> bytes:
        piece = state[at : at + PIECE]
        ask(at, len(piece))
        return struct.pack("<I", zlib.crc32(piece))

    with ThreadPoolExecutor(_N_THREADS) as pool:
        return b"".join(pool.map(one, range(0, len(state), PIECE)))


@contextlib.contextmanager
def checked_state(info: StateInfo) -> Iterator[memoryview]:
    """The state, mapped and found to be right; writing to it changes no file.

    Raises:
        DotsError: it is damaged, or can't be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(info.path.open("rb"))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise DotsError(f"{info.path} can't be read: {error}") from error
        yield from _checked(info, mapped, file.fileno())


def _checked(info: StateInfo, mapped: mmap.mmap, file: int) -> Iterator[memoryview]:
    def ask(at: int, nbytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            for n in range(at, at + nbytes, _ASKED):
                os.posix_fadvise(file, info.offset + n, _ASKED, os.POSIX_FADV_WILLNEED)

    view = memoryview(mapped)
    state = view[info.offset : info.offset + info.nbytes]
    try:
        if len(state) != info.nbytes or _sums(state, ask) != info.sums:
            raise DotsError(f"{info.path} is damaged: its checksum is another")
        yield state
    finally:
        state.release()
        view.release()
        with contextlib.suppress(BufferError):  # an exception's frames may still hold a view
            mapped.close()


class NewState:
    """A file that is being written: `fill` on the thread that decodes, `finish` on any.

    Raises, both: DotsError: it can't be written; nothing is left behind.
    """

    def __init__(
        self, path: Path, identity: str, tokens: Sequence[int], nbytes: int, prefill_s: float
    ) -> None:
        self.path = path
        self._tokens = array("i", tokens)
        values = {
            "identity": identity, "n_tokens": len(tokens), "nbytes": nbytes, "prefill_s": prefill_s,
        }  # fmt: skip
        text = json.dumps(values).encode()
        self._head = _HEAD.pack(MAGIC, len(text)) + text
        self._offset, n_pieces = _places(len(text), len(tokens), nbytes)
        self._nbytes = nbytes
        self._size = self._offset + nbytes + n_pieces * _SUM + _DIGEST
        self._name = ""
        self._mapped: mmap.mmap | None = None

    def fill(self, copy: Callable[[memoryview], None]) -> None:
        """Let `copy` put the state where it belongs."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, self._name = tempfile.mkstemp(dir=self.path.parent, prefix=".")  # 0600
            try:
                _allocate(descriptor, self._size)
                self._mapped = mmap.mmap(descriptor, self._size)
            finally:
                os.close(descriptor)
            with memoryview(self._mapped) as view:
                view[: len(self._head)] = self._head
                tokens = memoryview(self._tokens).cast("B")
                view[len(self._head) : len(self._head) + len(tokens)] = tokens
                with view[self._offset : self._offset + self._nbytes] as state:
                    copy(state)
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError):
                raise DotsError(
                    f"{self.path.parent}: a state can't be kept: {error.strerror}"
                ) from error
            raise

    def finish(self) -> None:
        """Hash it, bring it to the disk and give it its name."""
        assert self._mapped is not None
        try:
            with memoryview(self._mapped) as view:
                end = self._offset + self._nbytes
                with view[self._offset : end] as state:
                    sums = _sums(state)
                view[end:] = sums + _whole(self._head, self._tokens, sums)
            self._mapped.flush()
            self._mapped.close()
            self._mapped = None
            Path(self._name).replace(self.path)
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError):
                raise DotsError(f"{self.path} can't be written: {error.strerror}") from error
            raise

    def drop(self) -> None:
        """Leave nothing behind; harmless when done twice."""
        if self._mapped is not None:
            with contextlib.suppress(BufferError):
                self._mapped.close()
            self._mapped = None
        if self._name:
            Path(self._name).unlink(missing_ok=True)
            self._name = ""


def _allocate(descriptor: int, size: int) -> None:
    """So much of the disk: a mapping of a file with holes would end the process on a full one."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = bytes(1 << 20)
    for at in range(0, size, len(zeros)):
        os.write(descriptor, zeros[: size - at])
