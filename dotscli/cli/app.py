"""The command `dots`: which commands there are, and what an error becomes.

The commands themselves are in `dotscli.cli.commands`. `main` is the
one place where errors become lines on stderr and exit statuses.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from dotscli.cli import commands
from dotscli.errors import EXHAUSTED_HINT, DotsError, ExitStatus, is_exhausted
from dotscli.terminal.terminal import Terminal

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


# The commands, in the order of `dots --help`.
for command in (
    commands.quantize,
    commands.verify,
    commands.calibrate,
    commands.prompt,
    commands.chat,
    commands.plan,
    commands.inspect,
    commands.worker,
    commands.doctor,
):
    app.command()(command)


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
    except (MemoryError, RuntimeError, ImportError) as error:
        if terminal.environ.get("DOTS_DEBUG") == "1" or not is_exhausted(error):
            raise
        terminal.error("there is not enough memory", EXHAUSTED_HINT)
        return int(ExitStatus.ERROR)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except TerminatedError:
        terminal.note("terminated")
        return int(ExitStatus.TERMINATED)


# The library's own base of usage errors: it isn't exported, and where it lies has changed.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _defaults(root: Any, terminal: Terminal) -> dict[str, dict[str, Any]]:
    from dotscli.folders import config_path
    from dotscli.options.config import read_config

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
