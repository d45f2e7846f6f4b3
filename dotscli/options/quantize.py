"""The options of `dots quantize`, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dotscli.errors import DotsError, ExitStatus
from dotscli.options.shared import parse_size

if TYPE_CHECKING:
    from dotscli.quantize.request import Budget


def preset_names(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion of --type."""
    from dotscli.quantize.recipe.presets import PRESETS

    return [(p.name, p.summary) for p in PRESETS if p.name.startswith(incomplete)]


@dataclass(frozen=True)
class QuantizeFlags:
    """What a GGUF becomes, and how it is made."""

    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.gguf", help="Default: NAME-TYPE.gguf, here."),
    ] = None
    type: Annotated[
        str | None,
        typer.Option(
            "--type", autocompletion=preset_names, metavar="TYPE",
            help="q4 (default), f32, f16, bf16, q8_0, q4_0, q4_k_s, q4_k_m, iq4_nl, iq4_xs or "
            "mxfp4_moe; or a GGUF, to take its types.",
        ),
    ] = None  # fmt: skip
    bpw: Annotated[
        float | None,
        typer.Option(
            "--bpw", metavar="BITS",
            help="Instead of --type: the best types for at most so many bits per weight; measures.",
        ),
    ] = None  # fmt: skip
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="SIZE", parser=parse_size,
            help="The same for an output of at most this size.",
        ),
    ] = None  # fmt: skip
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type", metavar="REGEX=TYPE", help="The type of some tensors; repeatable."
        ),
    ] = None
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", metavar="FILE", help="Importance matrix (GGUF or .dat)."),
    ] = None
    blend: Annotated[
        bool,
        typer.Option(
            "--blend/--no-blend",
            help="Experts that saw few tokens there: helped by their layer, or as llama-quantize.",
        ),
    ] = True
    threads: Annotated[
        int, typer.Option("--threads", "-t", envvar="DOTS_THREADS", help="0: every core.")
    ] = 0
    max_memory: Annotated[
        int,
        typer.Option("--max-memory", metavar="SIZE", parser=parse_size, help="At most this much."),
    ] = "4G"  # type: ignore[assignment]  # the parser makes it a number
    split_max_size: Annotated[
        int | None,
        typer.Option(
            "--split-max-size", metavar="SIZE", parser=parse_size,
            help="Several files of at most this much; named as llama.cpp names them.",
        ),
    ] = None  # fmt: skip
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.json", help="Write the relative error of every expert there."
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan; without a budget config.json is enough."),
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False
    restart: Annotated[
        bool, typer.Option("--restart", help="Don't go on with an interrupted run's work.")
    ] = False

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
