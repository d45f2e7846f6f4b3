"""Which file a model's name stands for: a path, a name in the models folder, or the nano model.

It looks at names and files; it opens no model and makes none.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from dotscli.errors import DotsError

NANO = "nano"
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
EDGE_NBYTES = 1 << 16
MAX_LISTED = 8


def nano_checkpoint() -> Path:
    """The folder of the built-in checkpoint."""
    return Path(__file__).parent / "models" / NANO


def find(name: str, models: Path) -> Path | None:
    """The GGUF of a path, or of a name in the folder `models`; None is the nano model.

    Raises:
        DotsError: there is no such file, or it is a checkpoint that isn't quantized yet.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        _check_split(path)
        return path
    if name == NANO:
        return None
    if "/" not in name and os.sep not in name:
        for candidate in (models / name, models / f"{name}.gguf"):
            if candidate.is_file():
                _check_split(candidate)
                return candidate
    known = names(models)
    there = f"{models} has: {', '.join(known[:MAX_LISTED])}" if known else ""
    there += ", ..." if len(known) > MAX_LISTED else ""
    raise DotsError(
        f"model {name} not found",
        hint=there
        or f"give the path of a GGUF file, or put one into {models} and use its name; "
        "without -m, the built-in nano model is used",
    )


def names(models: Path) -> list[str]:
    """What -m may name: the GGUFs in the models folder, split ones once, in order."""
    try:
        files = sorted(path.name for path in models.iterdir() if path.suffix == ".gguf")
    except OSError:
        return []
    first = [name for name in files if not (m := SPLIT.fullmatch(name)) or int(m[2]) == 1]
    return [name.removesuffix(".gguf") for name in first]


def _in_folder(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and not found:
        raise DotsError(
            f"{folder} is a checkpoint, and llama.cpp runs only GGUF files",
            hint=f"dots quantize {folder} -o {folder.resolve().name}.gguf",
        )
    first = [path for path in found if not (m := SPLIT.fullmatch(path.name)) or int(m[2]) == 1]
    if len(first) != 1:
        raise DotsError(
            f"{folder} contains {len(first) or 'no'} models",
            hint="choose one of: " + " ".join(path.name for path in first[:4])
            if first
            else "give the path of a GGUF file",
        )
    _check_split(first[0])
    return first[0]


def _check_split(path: Path) -> None:
    """Of a split model, llama.cpp wants the first file."""
    match = SPLIT.fullmatch(path.name)
    if match is not None and int(match[2]) != 1:
        first = path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf")
        raise DotsError(
            f"{path} is part {int(match[2])} of a split model", hint=f"give the first part: {first}"
        )


def fingerprint(checkpoint: Path) -> str:
    """Eight hex digits that change with the checkpoint's files.

    Of a large file only the size and both ends are read, where the header of its tensors lies:
    this runs at every start.
    """
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.json")) + sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(os.fsencode(path.name) + f" {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_NBYTES))
            file.seek(max(0, size - EDGE_NBYTES))
            digest.update(file.read(EDGE_NBYTES))
    return digest.hexdigest()[:8]
