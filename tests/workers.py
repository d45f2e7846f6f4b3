"""`dots worker` as a process of its own on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
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
def running_worker(*flags: str | Path, data_nbytes: int = 0, **changes: str) -> Iterator[Worker]:
    """A worker that listens when the block begins, killed at its end.

    Args:
        data_nbytes: the most memory that it and each process it starts may have, where the system
            can bound it; 0 for no bound.
        changes: environment variables.
    """
    process = subprocess.Popen(
        command("worker", "--port", "0", "--json", *flags),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
    )
    if data_nbytes and sys.platform == "linux":
        import resource

        resource.prlimit(process.pid, resource.RLIMIT_DATA, (data_nbytes, data_nbytes))
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield Worker(process, json.loads(line))
    finally:
        process.kill()
        process.communicate()
