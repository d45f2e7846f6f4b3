"""The commands about files: quantize, verify, calibrate, inspect.

Each parses, calls and returns. A body imports what it needs when it runs, so that `dots --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotscli.grouping import grouped
from dotscli.options import Json, PlacementFlags
from dotscli.options_calibrate import CalibrateFlags
from dotscli.options_output import OutputFlags, terminal_of
from dotscli.options_quantize import QuantizeFlags


@grouped
def quantize(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="Folder with safetensors, or a GGUF.")],
    output: OutputFlags,
    flags: QuantizeFlags,
    json: Json = False,
) -> None:
    """Make a GGUF from a checkpoint or another GGUF, in one pass."""
    from dotscli.quantizing import quantize

    quantize(terminal_of(context, output), checkpoint, flags, json)


@grouped
def verify(
    context: typer.Context,
    gguf: Annotated[Path, typer.Argument(help="GGUF file, or the first file of a split one.")],
    output: OutputFlags,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="CHECKPOINT", help="Make the tensors again, compare."),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", metavar="NAME", help="Only this tensor; repeatable."),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="What it was made with.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", "-t", envvar="DOTS_THREADS", help="0: every core.")
    ] = 0,
    json: Json = False,
) -> None:
    """Check a GGUF: structure, checksums and, with its checkpoint, every byte."""
    from dotscli.verifying import verify

    terminal = terminal_of(context, output)
    raise typer.Exit(verify(terminal, gguf, against, tensor or (), imatrix, threads, json))


@grouped
def calibrate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="GGUF file; the closer to the checkpoint the better.")
    ],
    output: OutputFlags,
    flags: CalibrateFlags,
    placement: PlacementFlags,
    json: Json = False,
) -> None:
    """Run a model over text and write an importance matrix, with counts per expert."""
    from dotscli.calibrating import calibrate

    calibrate(terminal_of(context, output), model, flags, placement, json)


@grouped
def inspect(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Checkpoint folder, GGUF or importance matrix.")],
    output: OutputFlags,
    experts: Annotated[
        bool, typer.Option("--experts", help="Maps of its experts: how used, how exact.")
    ] = False,
    heat: Annotated[
        Path | None,
        typer.Option("--heat", metavar="FILE", help="Use from this heat file or imatrix."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.json", help="Errors from dots quantize --report."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the maps there as well: .svg or .png."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plot.")] = False,
    json: Json = False,
) -> None:
    """Say what a checkpoint, GGUF or imatrix holds."""
    terminal = terminal_of(context, output)
    if experts or heat or report or plot:
        from dotscli.expert_report import inspect_experts

        inspect_experts(terminal, path, heat, report, plot, force, json)
        return
    from dotscli.report import inspect

    inspect(terminal, path, json)
