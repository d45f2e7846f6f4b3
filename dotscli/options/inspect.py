"""The options of `dots inspect`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import Force, Heat, Panel, Report, varied


@dataclass(frozen=True)
class InspectFlags:
    """What is shown of experts."""

    experts: Annotated[
        bool,
        typer.Option(
            "--experts", rich_help_panel=Panel.INPUT, help="Show maps of experts: usage and error."
        ),
    ] = False
    heat: Heat = varied(None, rich_help_panel=Panel.INPUT)
    report: Report = varied(
        None, help="Take errors from dots quantize --report.", rich_help_panel=Panel.INPUT
    )
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", rich_help_panel=Panel.OUTPUT,
            help="Also draw the maps to this file, .svg or .png.",
        ),
    ] = None  # fmt: skip
    force: Force = varied(False, help="Replace an existing plot.")
