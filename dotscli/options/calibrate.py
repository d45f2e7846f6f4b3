"""The options of `dots calibrate`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

MIN_CHUNK, MAX_CHUNK = 16, 1 << 15  # llama.cpp's tools collect nothing from fewer tokens than 16


@dataclass(frozen=True)
class CalibrateFlags:
    """What a model reads to be measured, and where the result goes."""

    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="TEXT", help="Text to read; repeatable."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: MODEL.imatrix.gguf, here."),
    ] = None
    ctx_size: Annotated[
        int,
        typer.Option("--ctx-size", "-c", min=MIN_CHUNK, max=MAX_CHUNK, help="Tokens in a chunk."),
    ] = 512
    chunks: Annotated[
        int, typer.Option("--chunks", min=-1, help="At most so many; -1: all of the text.")
    ] = -1
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Names of control tokens in it are tokens.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much there is to do, and do nothing.")
    ] = False
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an existing file, or another interrupted run's."),
    ] = False
