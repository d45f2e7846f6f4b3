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

    out: Out = varied(None, metavar="OUT.gguf", help="File to write; default: ./NAME-TYPE.gguf.")
    type: Type = None
    bpw: Annotated[
        float | None,
        typer.Option(
            "--bpw", metavar="BITS", rich_help_panel=Panel.TYPES,
            help="Instead of --type: choose the best types for so many bits per weight; measures.",
        ),
    ] = None  # fmt: skip
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.TYPES,
            help="Instead of --type: the same for an output of at most this size, such as 70G.",
        ),
    ] = None  # fmt: skip
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type", metavar="REGEX=TYPE", rich_help_panel=Panel.TYPES,
            help="Override the type of matching tensors; repeatable.",
        ),
    ] = None  # fmt: skip
    imatrix: Imatrix = None
    blend: Annotated[
        bool,
        typer.Option(
            "--blend/--no-blend", rich_help_panel=Panel.TYPES,
            help="Blend the importance of rare experts with their layer's; no: as llama-quantize.",
        ),
    ] = True  # fmt: skip
    threads: Threads = varied(0, help="CPU threads; 0: all cores.")
    max_memory: Annotated[
        int,
        typer.Option(
            "--max-memory", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.RUN,
            help="Upper limit of memory use.",
        ),
    ] = "4G"  # type: ignore[assignment]  # fmt: skip  # the parser makes it a number
    split_max_size: Annotated[
        int | None,
        typer.Option(
            "--split-max-size", metavar="SIZE", parser=parse_size, rich_help_panel=Panel.OUTPUT,
            help="Split the output into files of at most this size, named as llama.cpp expects.",
        ),
    ] = None  # fmt: skip
    report: Report = None
    dry_run: DryRun = varied(
        False, help="Print the plan; with --type, config.json alone is enough."
    )
    force: Force = False
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", rich_help_panel=Panel.RUN,
            help="Start over instead of resuming an interrupted run.",
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
                "--type, --bpw and --size can't be combined",
                hint="--tensor-type sets the type of some tensors and works with each of them",
                exit_status=ExitStatus.USAGE,
            )
        if self.bpw is not None and not 0 < self.bpw <= 32:
            raise DotsError(
                f"--bpw {self.bpw:g} is out of range",
                hint="give a number above 0 and up to 32, e.g. --bpw 4.5",
                exit_status=ExitStatus.USAGE,
            )
        if self.bpw is None and self.size is None:
            return None
        return Budget(self.bpw, self.size)
