"""Whole transcripts of the command: what went to stdout, to stderr, and the exit status.

`dots` runs a command line inside this process, with streams of its own; `dots_process` starts a
real one, for signals, pipes and exit statuses; `on_a_terminal` gives it a pseudo-terminal.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.cli.app import run
from dotscli.terminal.terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
# ggml's threads wait for each other by spinning: on a busy machine two are far slower than one.
os.environ["DOTS_THREADS"] = "1"


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Transcript:
    """What a command said."""

    stdout: str
    stderr: str
    exit_status: int

    @property
    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.stdout)


def dots(
    *words: str | Path,
    stdin: str | None = "",
    tty: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Transcript:
    """Run a command line in this process. `stdin` None is a terminal where nobody types."""
    stream = Screen if tty else io.StringIO
    out, err = stream(), stream()
    terminal = Terminal(
        Screen() if stdin is None else io.StringIO(stdin),
        out,
        err,
        environ={"XDG_CONFIG_HOME": "/nonexistent", **(environ or {})},
    )
    status = run([str(word) for word in words], terminal)
    return Transcript(out.getvalue(), err.getvalue(), status)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process that is to find this checkout and nobody's configuration."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("DOTS_")}
    own = {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent", "DOTS_THREADS": "1"}
    return keep | own | changes


def command(*words: str | Path) -> list[str]:
    """The command line that starts dots with this interpreter."""
    return [sys.executable, "-m", "dotscli", *map(str, words)]


def dots_process(
    *words: str | Path, stdin: bytes | None = b"", **changes: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a real process to its end; `stdin` None is /dev/null."""
    return subprocess.run(
        command(*words),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=environment(**changes),
        timeout=120,
        check=False,
    )


class Terminals:
    """A process on a pseudo-terminal, and what it has drawn so far."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.master = master
        self.seen = ""

    def type(self, text: str) -> None:
        """Press keys; "\\r" is Enter."""
        os.write(self.master, text.encode())

    def wait_for(self, text: str, timeout: float = 30.0) -> str:
        """Read until the text is on the screen; returns what came up to then, without escapes."""
        end = time.monotonic() + timeout
        while text not in plain(self.seen):
            if not self._read(end):
                raise AssertionError(f"no {text!r} within {timeout} s in:\n{plain(self.seen)!r}")
        before, _, self.seen = plain(self.seen).partition(text)
        return before

    def wait(self, timeout: float = 30.0) -> int:
        """Read until the process is over; its exit status."""
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            self._read(min(end, time.monotonic() + 0.2))
            if time.monotonic() > end:
                raise AssertionError(f"still running after {timeout} s: {plain(self.seen)!r}")
        while self._read(time.monotonic() + 0.1):
            pass
        return self.process.returncode

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # Linux: the other end is closed
            return False
        self.seen += data.decode("utf-8", "replace")
        # prompt_toolkit asks where the cursor is; a terminal answers.
        for _ in range(data.count(b"\x1b[6n")):
            os.write(self.master, b"\x1b[24;1R")
        return bool(data)


def plain(text: str) -> str:
    """Text without the sequences that move the cursor or set colours."""
    return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>78]|\([A-Z0-9])", "", text)


@contextmanager
def on_a_terminal(
    *words: str | Path,
    columns: int = 80,
    stdout: int | None = None,
    shell: list[str] | None = None,
    **changes: str,
) -> Iterator[Terminals]:
    """A real process whose stdin, stdout and stderr are a terminal; or a shell instead of dots."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        shell or command(*words),
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        env=environment(**({"TERM": "xterm-256color"} | changes)),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
    )
    os.close(slave)
    try:
        yield Terminals(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)
