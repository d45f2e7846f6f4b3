"""Blocks of one file in another one, without a copy of them: FICLONERANGE of XFS and btrfs."""

from __future__ import annotations

import errno
import fcntl
import struct
import tempfile
from pathlib import Path

BLOCK = 4096  # what places and lengths must be multiples of
_FICLONERANGE = 0x4020940D
_NONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


def clone(source: int, start: int, nbytes: int, target: int, at: int) -> None:
    """Let target have bytes of source; all three numbers are multiples of BLOCK.

    Args:
        source, target: file descriptors on the same file system.

    Raises:
        OSError: the file system can't do that.
    """
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("<qQQQ", source, start, nbytes, at))


def can_clone(folder: Path) -> bool:
    """Whether files in a folder can share blocks."""
    with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
        one.write(bytes(BLOCK))
        one.flush()
        try:
            clone(one.fileno(), 0, BLOCK, other.fileno(), 0)
        except OSError as error:
            if error.errno in _NONE:
                return False
            raise
    return True


def occupied(path: Path) -> int:
    """Bytes that a file has on the disk; those it shares are counted in full."""
    return path.stat().st_blocks * 512
