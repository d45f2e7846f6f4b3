"""The options of `dots worker`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.options.shared import Panel, Threads


@dataclass(frozen=True)
class WorkerFlags:
    """What is offered, and where."""

    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", rich_help_panel=Panel.RUN,
            help="IPv4 address to listen on; 0.0.0.0: all addresses.",
        ),
    ] = "127.0.0.1"  # fmt: skip
    port: Annotated[
        int,
        typer.Option(
            "--port", min=0, max=65535, rich_help_panel=Panel.RUN,
            help="TCP port; 0: any free port.",
        ),
    ] = 50052  # fmt: skip
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="NAME", rich_help_panel=Panel.RUN,
            show_default="every GPU, else the CPU", help="Device to offer; repeatable.",
        ),
    ] = None  # fmt: skip
    threads: Threads = 0
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", rich_help_panel=Panel.RUN,
            help="Keep weights on disk, so that the next load need not send them.",
        ),
    ] = False  # fmt: skip
