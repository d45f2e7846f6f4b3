"""The command `dots`: parse, call, return.

A command's body imports what it needs when it runs, so that `dots --help` answers at once. `main`
is the one place where errors become lines on stderr and exit statuses.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from dotscli.errors import DotsError, ExitStatus
from dotscli.grouping import grouped
from dotscli.options import (
    AnswerFlags,
    EngineFlags,
    Json,
    Model,
    OutputFlags,
    PlanFlags,
    SamplingFlags,
)
from dotscli.options_quantize import QuantizeFlags
from dotscli.terminal import Terminal

HELP = """Run dots.llm1 on your own machine: quantize its checkpoint to 4 bits, prompt it, chat.

The answer, the table or the JSON that was asked for goes to stdout, everything else to stderr."""

app = typer.Typer(
    name="dots",
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class TerminatedError(BaseException):
    """SIGTERM: everything on the way out cleans up, and nothing catches it."""


def terminal_of(context: typer.Context, output: OutputFlags) -> Terminal:
    """The terminal of this run, as the output flags want it."""
    if output.color not in ("auto", "always", "never"):
        raise DotsError(
            f"--color is {output.color!r}", "give auto, always or never", ExitStatus.USAGE
        )
    terminal: Terminal = context.obj
    terminal.color, terminal.quiet = output.color, output.quiet
    return terminal


def show_version(wanted: bool) -> None:
    """--version, before any command is looked for."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dots {version('dotscli')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=show_version, is_eager=True, help="And exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitStatus.USAGE)


@app.command()
@grouped
def quantize(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
    output: OutputFlags,
    flags: QuantizeFlags,
    json: Json = False,
) -> None:
    """Make a GGUF from a safetensors checkpoint, in one pass."""
    from dotscli.quantizing import quantize

    quantize(terminal_of(context, output), checkpoint, flags, json)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@grouped
def inspect(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Checkpoint folder, GGUF or importance matrix.")],
    output: OutputFlags,
    json: Json = False,
) -> None:
    """Say what a checkpoint, GGUF or imatrix holds."""
    from dotscli.report import inspect

    inspect(terminal_of(context, output), path, json)


@app.command()
@grouped
def doctor(context: typer.Context, output: OutputFlags, json: Json = False) -> None:
    """Say what is installed, on which devices, and what works."""
    from dotscli.doctor import doctor

    doctor(terminal_of(context, output), json)


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run one command line; the exit status."""
    root: Any = typer.main.get_command(app)
    try:
        status = root.main(
            args=list(arguments),
            prog_name="dots",
            standalone_mode=False,
            obj=terminal,
            default_map=_defaults(root, terminal),
        )
        return int(status or 0)
    except DotsError as error:
        if terminal.environ.get("DOTS_DEBUG") == "1":
            raise
        terminal.error(error.message, error.hint)
        return error.exit_status
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context else "dots --help"
        if "unexpected extra argument" in error.format_message():
            hint = "put a text of several words in quotes"
        terminal.error(error.format_message(), hint)
        return int(ExitStatus.USAGE)
    except OSError as error:  # what nobody has foreseen: a file that vanished, a lost mount
        if terminal.environ.get("DOTS_DEBUG") == "1":
            raise
        terminal.error(str(error))
        return int(ExitStatus.ERROR)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except TerminatedError:
        terminal.note("terminated")
        return int(ExitStatus.TERMINATED)


# The library's own base of usage errors: it isn't exported, and where it lies has changed.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _defaults(root: Any, terminal: Terminal) -> dict[str, dict[str, Any]]:
    from dotscli.config import config_path, read_config

    options = {
        name: {
            spelling[2:].replace("-", "_"): parameter.name
            for parameter in command.params
            for spelling in parameter.opts
            if spelling.startswith("--")
        }
        for name, command in root.commands.items()
    }
    return read_config(config_path(terminal.environ), options)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise TerminatedError


def main() -> NoReturn:
    """The entry point of the command `dots`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    raise SystemExit(run(sys.argv[1:], Terminal.system()))
