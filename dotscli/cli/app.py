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
from dotscli.cli.examples import EXAMPLES
from dotscli.cli.help import Command, Group, Mender, help_of
from dotscli.cli.settings import config_of
from dotscli.errors import EXHAUSTED_HINT, DotsError, ExitStatus, is_exhausted
from dotscli.terminal.terminal import Terminal

HELP = """Run dots.llm1 on your own machine: quantize its checkpoint to 4 bits, prompt it, chat.

Answers, tables and JSON go to stdout, everything else to stderr.

-m takes a path, or a name in the models folder (dots doctor shows where). dots config shows the
default of every option, and can write a file to change them in.

Exit status: 0; 1 for an error; 2 for a wrong command line; 130 after Ctrl-C, 141 if whoever read
the output has closed it, 143 after SIGTERM."""

app = typer.Typer(
    name="dots",
    cls=Group,
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class TerminatedError(BaseException):
    """SIGTERM: everything on the way out cleans up, and nothing catches it."""


def show_version(context: typer.Context, wanted: bool) -> None:
    """--version, before any command is looked for."""
    if wanted:
        from importlib.metadata import version

        context.obj.write(f"dots {version('dotscli')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=show_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        terminal: Terminal = context.obj
        terminal.say(help_of(context, terminal, terminal.colour(terminal.stderr_is_tty)))
        raise typer.Exit(ExitStatus.USAGE)


# The commands, in the order of `dots --help`.
for command in (
    commands.quantize,
    commands.verify,
    commands.calibrate,
    commands.prompt,
    commands.chat,
    commands.sessions,
    commands.templates,
    commands.plan,
    commands.inspect,
    commands.worker,
    commands.doctor,
    commands.paths,
    commands.config,
):
    kind = Mender if command in (commands.doctor, commands.config) else Command
    app.command(cls=kind, epilog="\n".join(EXAMPLES[command.__name__]))(command)


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run one command line; the exit status. Whatever goes wrong is said in one line."""
    try:
        return _run(arguments, terminal)
    except (KeyboardInterrupt, TerminatedError, DotsError, Exception) as error:
        if terminal.environ.get("DOTS_DEBUG") == "1" and isinstance(error, Exception):
            raise
        return _said(error, terminal)


def _run(arguments: Sequence[str], terminal: Terminal) -> int:
    root: Any = typer.main.get_command(app)
    if terminal.environ.get("_DOTS_COMPLETE"):
        root.main(args=list(arguments), prog_name="dots")  # answers the shell, and exits
    config = config_of(root, terminal)
    try:
        # root.main would end the process with 1, and silently, when a pipe breaks.
        context = root.make_context(
            "dots", list(arguments), obj=terminal, default_map=config.defaults
        )
        config.attach(context)
        with context:
            return int(root.invoke(context) or 0)
    except typer.Exit as end:
        return int(end.exit_code)
    except SystemExit as end:  # typer's own --show-completion
        return end.code if isinstance(end.code, int) else 0


def _said(error: BaseException, terminal: Terminal) -> int:
    """Say an error on stderr; the exit status it stands for."""
    match error:
        case KeyboardInterrupt():
            return int(ExitStatus.INTERRUPTED)
        case TerminatedError():
            terminal.note("terminated")
            return int(ExitStatus.TERMINATED)
        case DotsError():
            terminal.error(error.message, error.hint)
            return error.exit_status
        case BrokenPipeError() if terminal.unread:
            return int(ExitStatus.UNREAD)
        case _ if is_exhausted(error):
            terminal.error("there is not enough memory", EXHAUSTED_HINT)
        case OSError():  # what nobody has foreseen: a file that vanished, a lost mount
            terminal.error(str(error) or type(error).__name__)
        case _ if isinstance(error, USAGE_ERROR):
            terminal.error(*_usage(error))
            return int(ExitStatus.USAGE)
        case _:
            terminal.error(
                f"{type(error).__name__}: {error}".removesuffix(": "),
                "this is a defect of dots: DOTS_DEBUG=1 before the command shows where",
            )
    return int(ExitStatus.ERROR)


# The library's own base of usage errors: it isn't exported, and where it lies has changed.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _usage(error: Any) -> tuple[str, str]:
    """What is wrong with a command line, and what to type instead."""
    context, message = getattr(error, "ctx", None), error.format_message()
    hint = f"{context.command_path} --help" if context else "dots --help"
    if "unexpected extra argument" in message:
        hint = "put text of several words in quotes"
    if (suggestion := getattr(error, "suggestion", "")) and getattr(error, "param", None):
        hint = f"{error.param.opts[0]} {suggestion}"
    return message, hint


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise TerminatedError


def main() -> NoReturn:
    """The entry point of the command `dots`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    raise SystemExit(run(sys.argv[1:], Terminal.system()))
