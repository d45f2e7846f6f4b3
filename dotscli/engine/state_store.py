"""The folder of kept states: which one begins like a prompt, and how much they may take.

States of one identity (a model file, cache types, a llama.cpp) serve each other's prompts. The
folder may take a tenth of what is free on its disk and at most 20 GiB; what was used longest ago
goes first. A state whose tokens another one begins with goes when it is more than half of it. What
is damaged is removed. It knows no llama.cpp.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from dotscli.engine.state_file import SUFFIX, StateInfo, read_info
from dotscli.errors import DotsError

MOST_NBYTES = 20 << 30
FREE_SHARE = 10  # a tenth of what is free
STALE_S = 24 * 3600.0  # a file that somebody has begun and not ended for so long
MAX_STATES = 1000


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    n = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        n += 1
    return n


class StateStore:
    """The states of one identity in a folder that others use as well.

    Args:
        folder: need not exist.
        identity: any text.
        warn: gets what is wrong with a state, a sentence each.
    """

    def __init__(self, folder: Path, identity: str, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.identity = identity
        self._warn = warn
        self._prefix = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

    def path(self, tokens: Sequence[int]) -> Path:
        """Where the state of these tokens lies, or would."""
        name = hashlib.blake2b(array("i", tokens), digest_size=8).hexdigest()
        return self.folder / f"{self._prefix}-{name}{SUFFIX}"

    def own(self) -> list[StateInfo]:
        """The states of this identity; damaged ones are said and removed."""
        found = []
        for path in sorted(self.folder.glob(f"{self._prefix}-*{SUFFIX}"))[:MAX_STATES]:
            try:
                info = read_info(path)
            except DotsError as error:
                self.damaged(path, error.message)
                continue
            if info.identity == self.identity:
                found.append(info)
        return found

    def best(self, tokens: Sequence[int]) -> tuple[StateInfo | None, int]:
        """The state that begins like these tokens for longest, and for how many of them."""
        best, length = None, 0
        for info in self.own():
            if (n := common(info.tokens, tokens)) > length:
                best, length = info, n
        return best, length

    def damaged(self, path: Path, why: str) -> None:
        """Says so, and removes it."""
        self._warn(f"{why}; it is removed, and what it stood for is read again")
        path.unlink(missing_ok=True)

    def used(self, info: StateInfo) -> None:
        """It goes later than the others."""
        with contextlib.suppress(OSError):
            info.path.touch()

    def make_room(self, nbytes: int) -> bool:
        """Let the longest unused go until so many bytes may come; whether they may."""
        limit = limit_nbytes(self.folder)
        if nbytes > limit:
            return False
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + nbytes <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size
        for path in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - STALE_S:
                    path.unlink()
        return True

    def succeed(self, new: Path, tokens: Sequence[int]) -> None:
        """Remove the states that the new one stands for as well."""
        for info in self.own():
            n = len(info.tokens)
            if info.path != new and 2 * n > len(tokens) and common(info.tokens, tokens) == n:
                info.path.unlink(missing_ok=True)


def limit_nbytes(folder: Path) -> int:
    """What the folder may hold, with what is in it."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    held = sum(_size(path) for path in folder.glob(f"*{SUFFIX}"))
    return min(MOST_NBYTES, (shutil.disk_usage(there).free + held) // FREE_SHARE)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
