"""Values that a shell can complete and that depend on the machine: files and templates.

It imports nothing of the command line's library, which takes longer than a key may.
"""

from __future__ import annotations

import os
from pathlib import Path


def gguf_files(incomplete: str) -> list[str]:
    """A model: GGUF files, and folders that may hold some."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        names = [f"{p}/" if p.is_dir() else str(p) for p in found if p.is_dir() or _is_gguf(p)]
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def template_names(incomplete: str) -> list[str]:
    """A template of the user's own."""
    from dotscli.folders import templates_folder

    return [n for n in templates_in(templates_folder(os.environ)) if n.startswith(incomplete)]


def templates_in(folder: Path) -> list[str]:
    """The names of the templates in a folder, in order; none where it can't be read."""
    try:
        return sorted(path.stem for path in folder.iterdir() if path.suffix == ".toml")
    except OSError:
        return []
