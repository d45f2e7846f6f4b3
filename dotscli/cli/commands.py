"""The commands: their arguments and options, and which function does the work.

Each parses, calls and returns. A body imports what it needs when it runs, so that `dots --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotscli.cli.grouping import grouped
from dotscli.options.calibrate import CalibrateFlags
from dotscli.options.output import OutputFlags, terminal_of
from dotscli.options.quantize import QuantizeFlags
from dotscli.options.shared import (
    AnswerFlags,
    EngineFlags,
    Json,
    Model,
    PlacementFlags,
    PlanFlags,
    SamplingFlags,
)
from dotscli.options.worker import WorkerFlags


@grouped
def quantize(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="Folder with safetensors, or a GGUF.")],
    output: OutputFlags,
    flags: QuantizeFlags,
    json: Json = False,
) -> None:
    """Make a GGUF from a checkpoint or another GGUF, in one pass."""
    from dotscli.commands.quantize import quantize

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
    from dotscli.commands.verify import verify

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
    from dotscli.commands.calibrate import calibrate

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
        from dotscli.commands.inspect_experts import inspect_experts

        inspect_experts(terminal, path, heat, report, plot, force, json)
        return
    from dotscli.commands.inspect import inspect

    inspect(terminal, path, json)


@grouped
def prompt(
    context: typer.Context,
    output: OutputFlags,
    sampling: SamplingFlags,
    answer: AnswerFlags,
    engine: EngineFlags,
    text: Annotated[str | None, typer.Argument(help="The question.", show_default=False)] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="FILE", help="Text to put first; repeatable."),
    ] = None,
    model: Model = None,
    json: Json = False,
    no_template: Annotated[
        bool, typer.Option("--no-template", help="Continue the text as it is; tags are tokens.")
    ] = False,
) -> None:
    """Answer one question: files, stdin and the argument, in this order."""
    from dotscli.commands.prompt import Request, prompt

    request = Request(text, file or (), model, no_template, json, sampling, answer, engine)
    status = prompt(terminal_of(context, output), request)
    raise typer.Exit(status)


@grouped
def chat(
    context: typer.Context,
    output: OutputFlags,
    sampling: SamplingFlags,
    answer: AnswerFlags,
    engine: EngineFlags,
    model: Model = None,
) -> None:
    """Hold a conversation; from a pipe, a message per line."""
    from dotscli.commands.chat import chat

    raise typer.Exit(chat(terminal_of(context, output), model, sampling, answer, engine))


@grouped
def plan(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="GGUF file, checkpoint folder, or a config.json alone.")
    ],
    output: OutputFlags,
    flags: PlanFlags,
    json: Json = False,
) -> None:
    """Say what goes where and what it costs, before anything is loaded."""
    from dotscli.commands.plan import plan

    plan(terminal_of(context, output), model, flags, json)


@grouped
def worker(
    context: typer.Context, output: OutputFlags, flags: WorkerFlags, json: Json = False
) -> None:
    """Offer this machine's devices to others, who use them with --rpc."""
    from dotscli.commands.worker import worker

    worker(terminal_of(context, output), flags, json)


@grouped
def doctor(context: typer.Context, output: OutputFlags, json: Json = False) -> None:
    """Say what is installed, on which devices, and what works."""
    from dotscli.commands.doctor import doctor

    doctor(terminal_of(context, output), json)
