"""The folder in which llama.cpp's server keeps weights: no half files, and no full disk.

llama.cpp writes a piece of weights under its hash and never looks whether that went well: half of
one would be used as a whole one at the next load. Which contents belong to a hash isn't checked
here: the hash (FNV-1a) can be forged, so a folder is worth as much as the clients that filled it.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from dotscli.engine.rpc.messages import HASH_REQUEST, SET_HEAD

RESERVE_NBYTES = 1 << 30  # of the disk, which stay free
MAX_FILES = 100_000  # that are looked after in one session


class CacheWatch:
    """What one client lets be kept.

    Args:
        folder: where llama.cpp's server keeps it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: tuple[bytes, int, int] | None = None  # tensor, offset, hash
        self._sizes: dict[int, int] = {}  # by hash

    def asked(self, request: bytes) -> None:
        """The client has asked whether a piece is there (SET_TENSOR_HASH)."""
        self._asked = HASH_REQUEST.unpack(request)

    def before_set(self, head: bytes, nbytes: int) -> bytes:
        """The head of a SET_TENSOR of `nbytes` in all, so that what should not be kept is not.

        A client asks for a piece before it sends it; only that tells its hash.
        """
        tensor, is_kept, offset = SET_HEAD.unpack(head)
        asked, self._asked = self._asked, None
        if not is_kept:
            return head
        size = nbytes - SET_HEAD.size
        if (
            asked is None
            or asked[:2] != (tensor, offset)
            or len(self._sizes) >= MAX_FILES
            or shutil.disk_usage(self._folder).free < size + RESERVE_NBYTES
        ):
            return SET_HEAD.pack(tensor, 0, offset)
        self._sizes[asked[2]] = size
        return head

    def close(self) -> None:
        """After the end of llama.cpp's process: removes what it has not written to the end."""
        for hash_, size in self._sizes.items():
            path = self._folder / f"{hash_:016x}"
            with suppress(OSError):
                if path.stat().st_size != size:
                    path.unlink()
