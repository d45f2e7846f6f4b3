"""The options of `dots calibrate`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.options.shared import CtxSize, DryRun, File, Force, Out, Panel, varied

MIN_CHUNK, MAX_CHUNK = 16, 1 << 15  # llama.cpp's tools collect nothing from fewer tokens than 16


@dataclass(frozen=True)
class CalibrateFlags:
    """What a model reads to be measured, and where the result goes."""

    file: File = varied(None, metavar="TEXT", help="Text to read; repeatable.")
    out: Out = varied(None, help="File to write; default: MODEL.imatrix.gguf, here.")
    ctx_size: CtxSize = varied(
        512, min=MIN_CHUNK, max=MAX_CHUNK, envvar=None, help="Tokens in a chunk.",
        rich_help_panel=Panel.INPUT,
    )  # fmt: skip
    chunks: Annotated[
        int,
        typer.Option(
            "--chunks", min=-1, rich_help_panel=Panel.INPUT,
            help="At most so many; -1: all of the text.",
        ),
    ] = -1  # fmt: skip
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special", rich_help_panel=Panel.INPUT,
            help="Names of control tokens in it are tokens.",
        ),
    ] = False  # fmt: skip
    dry_run: DryRun = varied(False, help="Say how much there is to do, and do nothing.")
    force: Force = varied(False, help="Replace an existing file, or another interrupted run's.")
