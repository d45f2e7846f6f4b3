"""File systems in sparse files, mounted through a loop device: XFS for direct reads, btrfs for
output that compresses. Linux and root only.

The loop device is told to go with the mount, so that nothing is left when that ends, and to read
past the page cache, so that direct reads reach the disk.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_MAKE = {"xfs": ("mkfs.xfs", "-q", "-K", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q", "-K")}
_MOUNT = {"xfs": "discard,noatime", "btrfs": "discard,noatime,compress-force=zstd:1"}
SIZES = {"xfs": 400 << 30, "btrfs": 200 << 30}  # what they say they have; sparse
KINDS = tuple(_MAKE)


@dataclass(frozen=True)
class Volume:
    """One file system: folder/KIND.img, mounted on folder/KIND."""

    folder: Path
    kind: str

    @property
    def image(self) -> Path:
        """The sparse file."""
        return self.folder / f"{self.kind}.img"

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.folder / self.kind

    def mount(self) -> Path:
        """Make it if it isn't there, mount it if it isn't mounted; the path.

        Raises:
            SystemExit: not root, a program is missing, or the kernel doesn't know it.
        """
        if os.path.ismount(self.path):
            return self.path
        if os.geteuid() != 0:
            raise SystemExit(f"mounting {self.kind} needs root")
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.image.exists():
            with self.image.open("wb") as file:
                file.truncate(SIZES[self.kind])
            _run(*_MAKE[self.kind], str(self.image))
        loop = _run("losetup", "--direct-io=on", "--find", "--show", str(self.image))
        try:
            _run("mount", "-t", self.kind, "-o", _MOUNT[self.kind], loop, str(self.path))
        finally:
            _run("losetup", "--detach", loop)  # while it is mounted: when it no longer is
        return self.path

    def clean(self) -> None:
        """Unmount it and remove everything."""
        if os.path.ismount(self.path):
            _run("umount", str(self.path))
        self.image.unlink(missing_ok=True)
        if self.path.is_dir():
            self.path.rmdir()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is missing: install xfsprogs and btrfs-progs") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return done.stdout.strip()
