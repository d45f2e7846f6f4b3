"""Which file a model's name stands for: a path, a name in the models folder, or the nano model.

The nano model comes as a checkpoint inside the package. It is quantized into the cache folder the
first time it is needed, whole or not at all, under a name that changes with its content.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.progress import closed
from dotscli.terminal import Terminal

NANO = "nano"
REAL_MODEL = "dots quantize PATH/TO/dots.llm1.inst"
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
EDGE_NBYTES = 1 << 16


def nano_checkpoint() -> Path:
    """The folder of the built-in checkpoint."""
    import dotscli.models

    return Path(dotscli.models.__file__).parent / NANO


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where made things are kept: $XDG_CACHE_HOME/dots, or what the system uses for that."""
    return _folder(environ, "XDG_CACHE_HOME", "user_cache_dir")


def models_folder(environ: Mapping[str, str]) -> Path:
    """Where models are looked up by name: $DOTS_MODELS, or models/ in the data folder."""
    if environ.get("DOTS_MODELS"):
        return Path(environ["DOTS_MODELS"]).expanduser()
    return _folder(environ, "XDG_DATA_HOME", "user_data_dir") / "models"


def heat_folder(environ: Mapping[str, str]) -> Path:
    """Where it is kept how much each expert of a model is used: heat/ in the data folder."""
    return _folder(environ, "XDG_DATA_HOME", "user_data_dir") / "heat"


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where the input history is kept: $XDG_STATE_HOME/dots."""
    return _folder(environ, "XDG_STATE_HOME", "user_state_dir")


def _folder(environ: Mapping[str, str], variable: str, function: str) -> Path:
    given = environ.get(variable, "")
    if Path(given).is_absolute():  # XDG's rule: a relative path counts as none
        return Path(given) / "dots"
    import platformdirs

    return Path(getattr(platformdirs, function)("dots", appauthor=False))


def resolve(name: str | None, terminal: Terminal) -> Path:
    """The GGUF to load for what the user gave as a model; None stands for the nano model.

    Raises:
        DotsError: there is no such file, or it is a checkpoint that isn't quantized yet.
    """
    if name is None:
        terminal.note(
            f"no model given: the built-in nano model answers; the real one: {REAL_MODEL}"
        )
        return nano_model(terminal)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        _check_split(path)
        return path
    if name == NANO:
        return nano_model(terminal)
    if "/" not in name and os.sep not in name:
        folder = models_folder(terminal.environ)
        for candidate in (folder / name, folder / f"{name}.gguf"):
            if candidate.is_file():
                _check_split(candidate)
                return candidate
    raise DotsError(
        f"there is no model {name}",
        hint="give the path of a GGUF file; without -m the built-in nano model answers",
    )


def _in_folder(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and not found:
        raise DotsError(
            f"{folder} is a checkpoint, which llama.cpp can't run as it is",
            hint=f"dots quantize {folder} -o {folder.resolve().name}.gguf",
        )
    first = [path for path in found if not (m := SPLIT.fullmatch(path.name)) or int(m[2]) == 1]
    if len(first) != 1:
        raise DotsError(
            f"{folder} is a folder with {len(first) or 'no'} models",
            hint="give one file: " + " ".join(path.name for path in first[:4])
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
        raise DotsError(f"{path} is part {int(match[2])} of a split model", hint=f"give {first}")


def nano_model(terminal: Terminal) -> Path:
    """The built-in model as a GGUF, quantized now if it hasn't been before.

    Raises:
        DotsError: the cache folder can't be written.
    """
    checkpoint = nano_checkpoint()
    folder = cache_folder(terminal.environ)
    path = folder / f"nano-q4-{fingerprint(checkpoint)}.gguf"
    if path.is_file():
        return path
    from dotscli.quantize import quantize_checkpoint
    from dotscli.quantize.convert import Progress

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as building:
            out = Path(building) / path.name
            events = quantize_checkpoint(checkpoint, out)
            with closed(events), terminal.progress("quantizing the nano model", 1, "B") as progress:
                for event in events:
                    if isinstance(event, Progress):
                        progress.total = event.source_nbytes
                        progress.update(event.done_nbytes)
            out.replace(path)
    except OSError as error:
        raise DotsError(
            f"{folder} can't be written: {error.strerror or error}",
            hint="set XDG_CACHE_HOME to a folder that can",
        ) from error
    return path


def fingerprint(checkpoint: Path) -> str:
    """Eight hex digits that change with the checkpoint's files.

    Of a large file only the size and both ends are read, where the header of its tensors lies:
    this runs at every start.
    """
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.json")) + sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_NBYTES))
            file.seek(max(0, size - EDGE_NBYTES))
            digest.update(file.read(EDGE_NBYTES))
    return digest.hexdigest()[:8]
