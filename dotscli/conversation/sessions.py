"""The folder of saved conversations: names, a list, and who has one open.

NAME.jsonl is a session of `dotscli.conversation.session_log`; nobody else may read it (0600). One
process at a time writes to a session, by a lock that ends with the process; Windows has none. It
knows no model and no terminal.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dotscli.conversation.session_log import (
    MAX_NBYTES,
    Header,
    Replayed,
    SessionLog,
    replay,
)
from dotscli.errors import DotsError
from dotscli.models.regular_file import check_regular

SUFFIX = ".jsonl"
MAX_NAME = 100  # bytes in UTF-8; file systems take 255 with what is added
MAX_SESSIONS = 10_000  # that are looked at
_WRONG = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]|^[.-]|^\s|\s$')
_WORDS = re.compile(r"\w+")
_N_WORDS = 5  # of the first question, in a name that nobody has chosen


@dataclass(frozen=True)
class Summary:
    """A session in a list; `problem` is why it can't be read, "" if it can."""

    name: str
    path: Path
    nbytes: int
    changed: float
    state: Replayed | None
    problem: str = ""

    @property
    def questions(self) -> list[str]:
        """What was asked, in order."""
        turns = self.state.turns if self.state else []
        return [turn.content for turn in turns if turn.role == "user"]


def check_name(name: str) -> None:
    """Refuse what is no file name on every system.

    Raises:
        DotsError: it isn't.
    """
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME or _WRONG.search(name):
        raise DotsError(
            f"{name[:MAX_NAME]!r} can't be a session's name",
            hint=f"up to {MAX_NAME} bytes of letters, digits, spaces, dots and dashes",
        )


class Sessions:
    """The sessions in a folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where a session of this name lies, or would.

        Raises:
            DotsError: no such name can be.
        """
        check_name(name)
        return self.folder / f"{name}{SUFFIX}"

    def all(self) -> list[Summary]:
        """Every session, the last used one first."""
        return [_summary(path) for path in self._paths()]

    def _paths(self) -> list[Path]:
        found: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            for path in list(self.folder.glob(f"*{SUFFIX}"))[:MAX_SESSIONS]:
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found, reverse=True)]

    def latest(self) -> str:
        """The name of the session that was used last.

        Raises:
            DotsError: there is none that can be read.
        """
        for path in self._paths():
            summary = _summary(path)
            if summary.state is not None:
                return summary.name
        raise DotsError(
            f"there is no saved conversation in {self.folder}", hint="dots chat begins one"
        )

    def read(self, name: str) -> Summary:
        """One session.

        Raises:
            DotsError: there is none of that name, or it can't be read.
        """
        path = self.path(name)
        if not path.exists():
            raise self._missing(name)
        summary = _summary(path)
        if summary.problem:
            raise DotsError(summary.problem)
        return summary

    def create(self, name: str, header: Header) -> tuple[str, SessionLog]:
        """A new session, and its name: another one where `name` is taken.

        Raises:
            DotsError: it can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for n in range(1, MAX_SESSIONS):
                free = name if n == 1 else f"{name}-{n}"
                with contextlib.suppress(FileExistsError):
                    descriptor = os.open(self.path(free), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
                    _lock(descriptor, free)
                    log = SessionLog(descriptor)
                    log.begin(header)
                    return free, log
        except OSError as error:
            reason = error.strerror or str(error)
            raise DotsError(f"{self.folder}: the conversation can't be saved: {reason}") from error
        raise DotsError(f"{self.folder} holds {MAX_SESSIONS} conversations named {name}")

    def open(self, name: str) -> tuple[Replayed, SessionLog]:
        """A session to go on with: what has been said, and where the rest goes.

        A line that a kill has cut off is removed.

        Raises:
            DotsError: there is none of that name, it is open elsewhere, or it can't be used.
        """
        path = self.path(name)
        check_regular(path)
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise DotsError(f"{path} can't be opened: {error.strerror}") from error
        try:
            _lock(descriptor, name)
            state = replay(_bytes(path), str(path))
            os.ftruncate(descriptor, state.nbytes)
        except OSError as error:
            os.close(descriptor)
            raise DotsError(f"{path} can't be used: {error.strerror}") from error
        except DotsError:
            os.close(descriptor)
            raise
        return state, SessionLog(descriptor, state.nbytes)

    def rename(self, name: str, to: str) -> None:
        """Give a session another name.

        Raises:
            DotsError: there is none of that name, the other is taken, or it can't be done.
        """
        path, new = self.path(name), self.path(to)
        if not path.exists():
            raise self._missing(name)
        try:
            _move(path, new)
        except FileExistsError:
            raise DotsError(f"there is a conversation named {to} already") from None
        except OSError as error:
            raise DotsError(f"{path} can't be renamed: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Delete a session.

        Raises:
            DotsError: there is none of that name, or it can't be done.
        """
        path = self.path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise DotsError(f"{path} can't be removed: {error.strerror}") from error

    def _missing(self, name: str) -> DotsError:
        return DotsError(f"there is no conversation named {name}", hint="dots sessions lists them")


def _move(path: Path, new: Path) -> None:
    """A rename that replaces nothing; raises OSError."""
    try:
        os.link(path, new)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: nobody else is likely to be that quick
        if new.exists():
            raise FileExistsError from None
        path.rename(new)
    else:
        path.unlink()


def name_for(question: str, now: datetime.datetime) -> str:
    """A name for a conversation that begins with this question: the day and a few words."""
    words = _WORDS.findall(question.lower())[:_N_WORDS]
    name = "-".join([f"{now:%Y-%m-%d}", *words]).encode("utf-8", "ignore")
    return name[: MAX_NAME - 10].decode("utf-8", "ignore").rstrip("-")


_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def _summary(path: Path) -> Summary:
    name = path.name.removesuffix(SUFFIX)
    try:
        check_regular(path)
        status = path.stat()
        state = replay(_bytes(path), str(path))
        return Summary(name, path, status.st_size, status.st_mtime, state)
    except DotsError as error:
        return Summary(name, path, 0, 0.0, None, error.message)
    except OSError as error:
        return Summary(name, path, 0, 0.0, None, f"{path} can't be read: {error.strerror}")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_NBYTES + 1)
    if len(data) > MAX_NBYTES:
        raise DotsError(f"{path} has more than {MAX_NBYTES >> 20} MiB, the most a session may have")
    return data


def _lock(descriptor: int, name: str) -> None:
    """Keep others from writing to it until it is closed."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DotsError(
            f"the conversation {name} is open in another dots chat",
            hint="dots chat begins a new one",
        ) from None
    except OSError:
        return  # a file system without locks
