"""The options of `dots doctor`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import Panel


@dataclass(frozen=True)
class DoctorFlags:
    """What to do beside looking."""

    measure: Annotated[
        Path | None,
        typer.Option(
            "--measure", metavar="FILE", rich_help_panel=Panel.RUN,
            help="Measure CPU, main memory and the disk of this file, for dots plan.",
        ),
    ] = None  # fmt: skip
