"""Texts that come from outside: bounded, and with a word when nothing comes.

What is read may be a file, a pipe such as `<(command)`, or a device that never ends. Which text it
is, and what becomes of it, is not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dotscli.errors import DotsError

MAX_TEXT_NBYTES = 32 << 20  # some eight million tokens, ten times what calibrating makes use of
WAIT_NOTE_S = 2.0  # after this long without an end, say what is being waited for


class Readable(Protocol):
    """A binary stream, as far as it is used here."""

    def read(self, size: int, /) -> bytes: ...


@contextmanager
def noted_wait(note: Callable[[str], None], text: str) -> Iterator[None]:
    """Say the text if the block isn't left within two seconds."""
    done = threading.Event()

    def remind() -> None:
        if not done.wait(WAIT_NOTE_S):
            note(text)

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()


def read_bounded(stream: Readable, origin: str) -> bytes:
    """All that a stream has.

    Args:
        origin: what it is, for the error message.

    Raises:
        DotsError: it has more than MAX_TEXT_NBYTES.
    """
    data = stream.read(MAX_TEXT_NBYTES + 1)
    if len(data) > MAX_TEXT_NBYTES:
        raise too_long(origin)
    return data


def too_long(origin: str) -> DotsError:
    """What to say of a text beyond the limit."""
    return DotsError(
        f"{origin} is longer than {MAX_TEXT_NBYTES >> 20} MiB, the limit for a text",
        hint=f"give a part of it: head -c {MAX_TEXT_NBYTES >> 20}M FILE > PART",
    )


def read_named(path: Path, note: Callable[[str], None]) -> bytes:
    """All that a file has, or a pipe that somebody writes to.

    Raises:
        DotsError: it can't be read, or is longer than MAX_TEXT_NBYTES.
    """
    try:
        if path.is_file():
            with path.open("rb") as file:
                return read_bounded(file, str(path))
        with noted_wait(note, f"waiting for someone to write to {path}"), path.open("rb") as file:
            return read_bounded(file, str(path))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise DotsError(f"{path} can't be read: {reason}") from error
