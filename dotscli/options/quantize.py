"""The options of `dots quantize`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dotscli.errors import DotsError, ExitStatus
from dotscli.options.shared import (
    DryRun,
    Force,
    Imatrix,
    Out,
    Panel,
    Report,
    Threads,
    Type,
    varied,
)
from dotscli.options.sizes import parse_size

if TYPE_CHECKING:
    from dotscli.quantize.request import Budget


@dataclass(frozen=True)
class QuantizeFlags:
    """What a GGUF becomes, and how it is made."""

    out: Out = varied(
        None, metavar="OUT.gguf", help="File to write; default: NAME-TYPE.gguf, here."
    )
    type: Type = None
    bpw: Annotated[
        float | None,
        typer.Option(
            "--bpw", metavar="BITS", rich_help_panel=Panel.TYPES,
            help="Instead of --type: the best types for at most so many bits per weight; measures.",
        ),
    ] = None  # fmt: skip
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.TYPES,
            help="The same for an output of at most this size, such as 70G.",
        ),
    ] = None  # fmt: skip
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type", metavar="REGEX=TYPE", rich_help_panel=Panel.TYPES,
            help="The type of some tensors; repeatable.",
        ),
    ] = None  # fmt: skip
    imatrix: Imatrix = None
    blend: Annotated[
        bool,
        typer.Option(
            "--blend/--no-blend", rich_help_panel=Panel.TYPES,
            help="Experts that saw few tokens there: helped by their layer, or as llama-quantize.",
        ),
    ] = True  # fmt: skip
    threads: Threads = varied(0, help="CPU threads; 0: every core.")
    max_memory: Annotated[
        int,
        typer.Option(
            "--max-memory", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.RUN,
            help="At most this much.",
        ),
    ] = "4G"  # type: ignore[assignment]  # fmt: skip  # the parser makes it a number
    split_max_size: Annotated[
        int | None,
        typer.Option(
            "--split-max-size", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.OUTPUT,
            help="Several files of at most this much; named as llama.cpp names them.",
        ),
    ] = None  # fmt: skip
    report: Report = None
    dry_run: DryRun = varied(False, help="Print the plan; without a budget config.json is enough.")
    force: Force = False
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", rich_help_panel=Panel.RUN,
            help="Discard an interrupted run's work.",
        ),
    ] = False  # fmt: skip

    def budget(self) -> Budget | None:
        """What --bpw or --size allows.

        Raises:
            DotsError: more than one of --type, --bpw and --size, or a --bpw that is no number of
                bits.
        """
        from dotscli.quantize.request import Budget

        if [self.type, self.bpw, self.size].count(None) < 2:
            raise DotsError(
                "--type, --bpw and --size exclude each other",
                hint="--tensor-type fixes the type of some tensors and goes with each of them",
                exit_status=ExitStatus.USAGE,
            )
        if self.bpw is not None and not 0 < self.bpw <= 32:
            raise DotsError(
                f"--bpw {self.bpw:g} is no number of bits per weight",
                hint="e.g. --bpw 4.5",
                exit_status=ExitStatus.USAGE,
            )
        if self.bpw is None and self.size is None:
            return None
        return Budget(self.bpw, self.size)
