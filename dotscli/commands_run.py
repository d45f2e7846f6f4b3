"""The commands about running a model: prompt, chat, plan, worker, doctor.

Each parses, calls and returns, as `dotscli.commands_files` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotscli.grouping import grouped
from dotscli.options import (
    AnswerFlags,
    EngineFlags,
    Json,
    Model,
    PlanFlags,
    SamplingFlags,
)
from dotscli.options_output import OutputFlags, terminal_of
from dotscli.options_worker import WorkerFlags


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
    from dotscli.oneshot import Request, prompt

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
    from dotscli.repl import chat

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
    from dotscli.planning import plan

    plan(terminal_of(context, output), model, flags, json)


@grouped
def worker(
    context: typer.Context, output: OutputFlags, flags: WorkerFlags, json: Json = False
) -> None:
    """Offer this machine's devices to others, who use them with --rpc."""
    from dotscli.working import worker

    worker(terminal_of(context, output), flags, json)


@grouped
def doctor(context: typer.Context, output: OutputFlags, json: Json = False) -> None:
    """Say what is installed, on which devices, and what works."""
    from dotscli.doctor import doctor

    doctor(terminal_of(context, output), json)
