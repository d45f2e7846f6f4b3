"""`dots worker` as a process of its own on the loopback interface."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.transcript import command, environment


@dataclass(frozen=True)
class Worker:
    """A running worker and the JSON document it has printed."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.facts["address"])


@contextmanager
def running_worker(*flags: str | Path, **changes: str) -> Iterator[Worker]:
    """A worker that listens when the block begins, killed at its end."""
    process = subprocess.Popen(
        command("worker", "--port", "0", "--json", *flags),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield Worker(process, json.loads(line))
    finally:
        process.kill()
        process.communicate()
