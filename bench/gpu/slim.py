"""A wheel of llama-cpp-python without what nothing loads, for a machine that it has to travel to.

    python -m bench.gpu.slim WHEEL FOLDER           # writes the smaller wheel into FOLDER

The wheel holds every library six times, under three names in two folders. What the loader asks for
is kept (each by its soname, those that Python opens also by their plain name), and stripped.
Needs the package `wheel` and the program `strip`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OPENED = ("llama", "mtmd", "ggml", "ggml-base")  # by their plain names, from Python
UNUSED = ("bin", "include", "lib")  # what CMake installs beside the package
WANTED = re.compile(rf"lib({'|'.join(OPENED)})\.so|lib[a-z-]+\.so\.\d+")


def slim(wheel: Path, folder: Path) -> Path:
    """Write the smaller wheel; returns its path."""
    with tempfile.TemporaryDirectory() as work:
        _run("unpack", "--dest", work, wheel)
        [root] = Path(work).iterdir()
        for path in [path for path in root.rglob("*") if path.is_file()]:
            top = path.relative_to(root).parts[0]
            library = ".so" in path.name
            if top in UNUSED or (library and not WANTED.fullmatch(path.name)):
                path.unlink()
            elif library:
                subprocess.run(["strip", "--strip-all", path], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        _run("pack", "--dest-dir", folder, root)
    return folder / wheel.name


def _run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    found = slim(given.wheel, given.folder)
    sizes = [path.stat().st_size / 1e6 for path in (given.wheel, found)]
    print(f"{found}: {sizes[0]:.1f} MB, now {sizes[1]:.1f} MB")


if __name__ == "__main__":
    main()
