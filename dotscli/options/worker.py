"""The options of `dots worker`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class WorkerFlags:
    """What is offered, and where."""

    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="IPv4 address to listen on; 0.0.0.0: all of them."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="TCP port; 0: one that is free.")
    ] = 50052
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="NAME", help="Repeatable; without it every GPU, else the CPU."
        ),
    ] = None
    threads: Annotated[
        int,
        typer.Option(
            "--threads", "-t", envvar="DOTS_THREADS", min=0, max=512,
            help="Of the CPU; 0: one per physical core.",
        ),
    ] = 0  # fmt: skip
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Keep weights on disk: the next load need not send them."),
    ] = False
