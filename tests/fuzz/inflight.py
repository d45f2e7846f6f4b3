"""The input that is being run, in memory that parent and child share.

Whatever ends the child, the parent still has the input, when it began and what the child weighed
then. Writing it costs a copy, no system call.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path

MAX_NBYTES = 128 << 20
_HEAD = struct.Struct("<QQddQQ")
_SUM = struct.Struct("<I")
_DATA = 4096
_TRIES = 1000


@dataclass(frozen=True)
class State:
    """What the child says of itself.

    Attributes:
        n_begun: inputs that were begun; n_done: those that came to an end.
        started: time.monotonic() when the one in flight was begun; 0.0 between two.
        busy_s: processor time that the child had used by then; rss: bytes of memory it had.
        nbytes: size of the input.
    """

    n_begun: int
    n_done: int
    started: float
    busy_s: float
    rss: int
    nbytes: int


class Inflight:
    """The shared memory, a file that both have mapped."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        if new:
            with path.open("wb") as file:
                file.truncate(_DATA + MAX_NBYTES)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _DATA + MAX_NBYTES)
        if new:
            self.write(State(0, 0, 0.0, 0.0, 0, 0))

    def state(self) -> State:
        """As the child has written it last."""
        for _ in range(_TRIES):  # one that died while it wrote leaves a wrong checksum for good
            read = self._map[: _HEAD.size + _SUM.size]
            head = read[: _HEAD.size]
            if _SUM.pack(zlib.crc32(head)) == read[_HEAD.size :]:
                break
            time.sleep(0.001)  # the child may have lost its core in the middle of it
        return State(*_HEAD.unpack(head))

    def write(self, state: State) -> None:
        """Replace it; the data stays. The checksum tells what is half written."""
        head = _HEAD.pack(*astuple(state))
        self._map[: _HEAD.size + _SUM.size] = head + _SUM.pack(zlib.crc32(head))

    def put(self, data: bytes) -> None:
        """The input that is begun next."""
        if len(data) > MAX_NBYTES:
            raise ValueError(f"an input of {len(data)} bytes")
        self._map[_DATA : _DATA + len(data)] = data

    def data(self) -> bytes:
        """The input in flight."""
        return self._map[_DATA : _DATA + self.state().nbytes]

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
