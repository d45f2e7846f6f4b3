"""The commands: their arguments and options, and which function does the work.

Each parses, calls and returns. A body imports what it needs when it runs, so that `dots --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotscli.cli.grouping import grouped
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.calibrate import CalibrateFlags
from dotscli.options.chat import Action, SessionFlags, SessionsFlags
from dotscli.options.config import ConfigFlags
from dotscli.options.doctor import DoctorFlags
from dotscli.options.engine import EngineFlags, PlacementFlags
from dotscli.options.inspect import InspectFlags
from dotscli.options.output import OutputFlags, terminal_of
from dotscli.options.plan import PlanFlags
from dotscli.options.prompt import OneShotFlags
from dotscli.options.quantize import QuantizeFlags
from dotscli.options.shared import File, Json, Model
from dotscli.options.templates import TemplatesFlags
from dotscli.options.verify import VerifyFlags
from dotscli.options.worker import WorkerFlags


@grouped
def quantize(
    context: typer.Context,
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="Checkpoint folder (safetensors), or a GGUF file."
        ),
    ],
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
    gguf: Annotated[
        Path, typer.Argument(metavar="GGUF", help="GGUF file, or the first file of a split model.")
    ],
    output: OutputFlags,
    flags: VerifyFlags,
    json: Json = False,
) -> None:
    """Check a GGUF: structure, checksums and, with its checkpoint, every byte."""
    from dotscli.commands.verify import verify

    terminal, names = terminal_of(context, output), flags.tensor or ()
    status = verify(terminal, gguf, flags.against, names, flags.imatrix, flags.threads, json)
    raise typer.Exit(status)


@grouped
def calibrate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="GGUF file; the closer to the original weights, the better."
        ),
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
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Checkpoint folder, GGUF or importance matrix.")
    ],
    output: OutputFlags,
    flags: InspectFlags,
    json: Json = False,
) -> None:
    """Show what a checkpoint, GGUF or importance matrix contains."""
    terminal = terminal_of(context, output)
    if flags.experts or flags.heat or flags.report or flags.plot:
        from dotscli.commands.inspect_experts import inspect_experts

        inspect_experts(terminal, path, flags.heat, flags.report, flags.plot, flags.force, json)
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
    one_shot: OneShotFlags,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The question; - reads it from stdin.")
    ] = None,
    file: File = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Answer one question, made of files, stdin and the argument, in that order."""
    from dotscli.commands.prompt import Request, prompt

    request = Request(text, file or (), model, json, one_shot, sampling, answer, engine)
    status = prompt(terminal_of(context, output), request)
    raise typer.Exit(status)


@grouped
def chat(
    context: typer.Context,
    output: OutputFlags,
    sampling: SamplingFlags,
    answer: AnswerFlags,
    engine: EngineFlags,
    session: SessionFlags,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The first message.")] = None,
    model: Model = None,
) -> None:
    """Chat with a model; from a pipe, one message per line."""
    from dotscli.commands.chat import chat

    status = chat(terminal_of(context, output), text, model, session, sampling, answer, engine)
    raise typer.Exit(status)


@grouped
def sessions(
    context: typer.Context,
    output: OutputFlags,
    flags: SessionsFlags,
    action: Annotated[
        Action, typer.Argument(metavar="ACTION", help="list, show, export, rename, rm or cache.")
    ] = Action.LIST,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="The conversation; for rename, the new name too."),
    ] = None,
    json: Json = False,
) -> None:
    """List the saved conversations and kept contexts; show, export, rename or remove one."""
    from dotscli.commands.sessions import sessions

    sessions(terminal_of(context, output), action, names or [], flags, json)


@grouped
def templates(
    context: typer.Context,
    output: OutputFlags,
    flags: TemplatesFlags,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The template to show; without, list all.")
    ] = None,
    json: Json = False,
) -> None:
    """List the templates for dots prompt --template, show one, or write samples."""
    from dotscli.commands.templates import templates

    templates(terminal_of(context, output), name, flags.init, json)


@grouped
def plan(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="GGUF file, checkpoint folder, or just a config.json."
        ),
    ],
    output: OutputFlags,
    flags: PlanFlags,
    json: Json = False,
) -> None:
    """Show what would go where and what it would cost, without loading anything."""
    from dotscli.commands.plan import plan

    plan(terminal_of(context, output), model, flags, json)


@grouped
def worker(
    context: typer.Context, output: OutputFlags, flags: WorkerFlags, json: Json = False
) -> None:
    """Offer this machine's devices to other machines, which use them with --rpc."""
    from dotscli.commands.worker import worker

    worker(terminal_of(context, output), flags, json)


@grouped
def doctor(
    context: typer.Context, output: OutputFlags, flags: DoctorFlags, json: Json = False
) -> None:
    """Show what is installed, which devices there are, and what works."""
    from dotscli.cli.settings import problem_of
    from dotscli.commands.doctor import doctor

    doctor(terminal_of(context, output), flags, json, problem_of(context))


@grouped
def paths(context: typer.Context, output: OutputFlags, json: Json = False) -> None:
    """Show where dots keeps settings, models, conversations and caches."""
    from dotscli.commands.paths import paths

    paths(terminal_of(context, output), json)


@grouped
def config(
    context: typer.Context, output: OutputFlags, flags: ConfigFlags, json: Json = False
) -> None:
    """Show every setting with its origin, or write a commented config.toml."""
    from dotscli.cli.settings import problem_of, settings_of
    from dotscli.commands.config import config

    config(terminal_of(context, output), settings_of(context), problem_of(context), flags, json)
