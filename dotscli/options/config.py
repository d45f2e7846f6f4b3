"""The options of `dots config`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.options.shared import Init, Panel, varied


@dataclass(frozen=True)
class ConfigFlags:
    """What is done instead of showing all settings."""

    path: Annotated[
        bool,
        typer.Option(
            "--path", rich_help_panel=Panel.RUN, help="Print where config.toml is looked for."
        ),
    ] = False
    init: Init = varied(False, help="Write an example there, with every option commented out.")
