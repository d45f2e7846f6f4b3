"""The options of `dots verify`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import Imatrix, Panel, Threads, varied


@dataclass(frozen=True)
class VerifyFlags:
    """What a GGUF is compared with."""

    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="CHECKPOINT", rich_help_panel=Panel.INPUT,
            help="Quantize this checkpoint again and compare.",
        ),
    ] = None  # fmt: skip
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor", metavar="NAME", rich_help_panel=Panel.INPUT,
            help="Only this tensor; repeatable.",
        ),
    ] = None  # fmt: skip
    imatrix: Imatrix = varied(
        None, help="The importance matrix it was made with.", rich_help_panel=Panel.INPUT
    )
    threads: Threads = varied(0, help="CPU threads; 0: all cores.")
