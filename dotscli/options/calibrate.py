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

    file: File = varied(None, metavar="TEXT", help="Text file to calibrate on; repeatable.")
    out: Out = varied(None, help="File to write; default: ./MODEL.imatrix.gguf.")
    ctx_size: CtxSize = varied(
        512, min=MIN_CHUNK, max=MAX_CHUNK, envvar=None, help="Tokens per chunk.",
        rich_help_panel=Panel.INPUT,
    )  # fmt: skip
    chunks: Annotated[
        int,
        typer.Option(
            "--chunks", min=-1, rich_help_panel=Panel.INPUT,
            help="Maximum number of chunks; -1: the whole text.",
        ),
    ] = -1  # fmt: skip
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special", rich_help_panel=Panel.INPUT,
            help="Parse control tokens in the text.",
        ),
    ] = False  # fmt: skip
    dry_run: DryRun = varied(False, help="Show how much there is to do, and do nothing.")
    force: Force = varied(False, help="Replace an existing file, or the rest of another run.")
