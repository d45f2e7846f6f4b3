"""The model that a command works with: found by its name, made if it is the nano model, and loaded.

The nano model comes as a checkpoint inside the package. It is quantized into the cache folder the
first time it is needed, whole or not at all, under a name that changes with its content.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli import catalog
from dotscli.errors import DotsError
from dotscli.folders import cache_folder, models_folder
from dotscli.models.regular_file import check_replaceable
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.engine import Engine, EngineOptions
    from dotscli.engine.collect import Collector

REAL_MODEL = "dots quantize PATH/TO/dots.llm1.inst"


def resolve(name: str | None, terminal: Terminal) -> Path:
    """The GGUF to load for what the user gave as a model; None stands for the nano model.

    Raises:
        DotsError: there is no such file, or it is a checkpoint that isn't quantized yet.
    """
    if name is None:
        terminal.note(
            f"no model given: using the built-in nano model; to get the real one: {REAL_MODEL}"
        )
        return nano_model(terminal)
    found = catalog.find(name, models_folder(terminal.environ))
    return nano_model(terminal) if found is None else found


def nano_model(terminal: Terminal) -> Path:
    """The built-in model as a GGUF, quantized now if it hasn't been before.

    Raises:
        DotsError: the cache folder can't be written.
    """
    checkpoint = catalog.nano_checkpoint()
    folder = cache_folder(terminal.environ)
    path = folder / f"nano-q4-{catalog.fingerprint(checkpoint)}.gguf"
    if path.is_file():
        return path
    from dotscli.quantize import quantize_checkpoint
    from dotscli.quantize.convert import Progress

    check_replaceable(path, hint="set XDG_CACHE_HOME to another folder")
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
    except (OSError, DotsError) as error:
        reason = error.message if isinstance(error, DotsError) else error.strerror or str(error)
        needed = format_bytes(sum(file.stat().st_size for file in checkpoint.iterdir()))
        raise DotsError(
            f"the nano model can't be kept in {folder}: {reason}",
            hint=f"free {needed} there, or use another folder: export XDG_CACHE_HOME=FOLDER",
        ) from error
    return path


def open_engine(
    terminal: Terminal, path: Path, options: EngineOptions, collector: Collector | None = None
) -> Engine:
    """Load a model, with progress on stderr. An abort in llama.cpp is one line from here on.

    The collector is for calibration.

    Raises:
        DotsError: the file can't be used; llama.cpp's reason is in it.
    """
    from dotscli.engine import Engine, say_at_abort

    if terminal.environ.get("DOTS_DEBUG") != "1":  # who looks for the cause wants it to crash
        say_at_abort(lambda error: terminal.last_words(error.message, error.hint))
    if options.verbose:  # its log is progress enough
        return Engine.load(path, options, on_log=terminal.note, collector=collector)
    with terminal.progress(f"loading {path.name}", 0, "B") as progress:

        def on_load(done: float, total: float) -> None:
            if total != progress.total:  # another part of the load, at another speed
                progress.total = total
                progress.start_over()
            progress.update(done)

        return Engine.load(path, options, on_load, terminal.warn, collector)
