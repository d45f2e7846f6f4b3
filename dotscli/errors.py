"""The one exception that users see: a sentence that says what is wrong, and the next step.

Libraries raise `DotsError`; `dotscli.cli.app.main` alone catches it and prints one `error:` line
and one `hint:` line. This module imports nothing of the package, so every layer may use it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the command `dots`; the last three are 128 + the signal's number."""

    OK = 0
    ERROR = 1
    USAGE = 2
    INTERRUPTED = 130
    UNREAD = 141  # whoever read the output has closed the pipe, as `head` does
    TERMINATED = 143


class DotsError(Exception):
    """Something the user can understand and act on.

    Args:
        message: one sentence that names the file and the value in question, without a full stop.
        hint: the next command or the thing to change; empty if there is nothing useful to say.
        exit_status: what the process returns, 1 unless it is a usage error.
    """

    def __init__(self, message: str, hint: str = "", exit_status: int = ExitStatus.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_status = int(exit_status)


class OutputError(DotsError):
    """stdout can't be written: whatever is done next could not be shown either."""


def usage(message: str, hint: str) -> DotsError:
    """An error in how the command was called: exit status 2."""
    return DotsError(message, hint, ExitStatus.USAGE)


EXHAUSTED_HINT = "end other programs, or raise the limits of this shell (ulimit -v, ulimit -u)"


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory, or room for another thread, has run out."""
    if isinstance(error, MemoryError):
        return True
    reasons = ("can't start new thread", "failed to map segment", "annot allocate memory")
    return any(reason in str(error) for reason in reasons)
