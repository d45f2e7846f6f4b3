"""The options of `dots plan`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.options.shared import CacheTypeK, CacheTypeV, CtxSize, Heat, Panel, Ram, Type, varied
from dotscli.options.sizes import parse_size


@dataclass(frozen=True)
class PlanFlags:
    """What to plan for. Sizes in bytes; unset ones are found out."""

    vram: Annotated[
        int | None,
        typer.Option(
            "--vram", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.PLACEMENT,
            show_default="what is free", help="Device memory; 0: no device.",
        ),
    ] = None  # fmt: skip
    ram: Ram = None
    ctx_size: CtxSize = varied(
        0, help="Context size in tokens; 0: 8192, or what a load would take."
    )
    cache_type_k: CacheTypeK = "f16"
    cache_type_v: CacheTypeV = "f16"
    type: Type = varied(None, help="Type to quantize a checkpoint to.")
    heat: Heat = None
    bandwidth: Annotated[
        int | None,
        typer.Option(
            "--bandwidth", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.PLACEMENT,
            show_default="what dots doctor --measure found",
            help="Main memory bandwidth per second, to estimate tokens per second.",
        ),
    ] = None  # fmt: skip
    disk_bandwidth: Annotated[
        int | None,
        typer.Option(
            "--disk-bandwidth", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.PLACEMENT,
            show_default="what dots doctor --measure found",
            help="The same of the disk, where experts have to be read from it.",
        ),
    ] = None  # fmt: skip
