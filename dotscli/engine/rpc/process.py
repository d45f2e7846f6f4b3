"""llama.cpp's RPC server in a process of its own: started, connected to, ended, asked why it died.

One serves one client: what a client leaves behind in it, errors too, is gone with it. It listens on
the loopback interface, as llama.cpp offers nothing else, and has one client at a time, so it is
connected to as soon as it listens; whoever else finds the port is never answered.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dotscli.engine.rpc.greeting import receive
from dotscli.engine.rpc.messages import CAPABILITIES, HELLO, REQUEST, VERSION, WELCOME
from dotscli.errors import DotsError

START_S = 120.0  # a GPU's driver may compile first
GREETING_S = 10.0
KEPT_NBYTES = 4096  # of what it says
LONGEST_REPORT = 1 << 20
NEW_GROUP = 0x200  # CREATE_NEW_PROCESS_GROUP, which only Windows has
# Modules come from where this process has them, and not from the current folder.
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from {} import main; main()"


class ServerProcess:
    """A server that is being started; `connect` waits for it.

    Args:
        names: devices to offer, as `dotscli.engine.rpc.child.offered_devices` takes them.
        n_threads: of a CPU among them.
        cache: a folder for large tensors that clients have sent, so that they need not again.

    Attributes:
        devices: what it offers: name, type, description, free_bytes, total_bytes. From `connect`.
        welcome: its greeting, as it is to be passed on to a client. From `connect`.
        connection: to the server. From `connect`.
    """

    devices: list[dict[str, Any]]
    welcome: bytes
    connection: socket.socket

    def __init__(self, names: Sequence[str], n_threads: int, cache: Path | None) -> None:
        told = {
            "names": list(names),
            "threads": n_threads,
            "cache": os.fspath(cache) if cache else None,
        }
        boot = BOOT.format("dotscli.engine.rpc.child")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", boot, json.dumps(sys.path), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # a debugger would be started for one
            start_new_session=os.name == "posix",  # Ctrl-C is not meant for it
            creationflags=0 if os.name == "posix" else NEW_GROUP,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._report = b""
        self._said = b""
        self._readers = [
            threading.Thread(target=self._read_report, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_words, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def connect(self) -> None:
        """Waits until it serves, and greets it; does nothing when that has been done.

        Raises:
            DotsError: it can't serve these devices, doesn't start, or has another protocol.
        """
        if hasattr(self, "connection"):
            return
        self._readers[0].join(START_S)
        try:
            report = json.loads(self._report or "{}")
        except ValueError:
            report = {}
        if "error" in report:
            raise DotsError(*report["error"])
        if "port" not in report:
            raise DotsError(
                f"llama.cpp's server does not start: {self.last_words()}", hint="run: dots doctor"
            )
        self.devices = report["devices"]
        try:
            connection = socket.create_connection(("127.0.0.1", report["port"]), GREETING_S)
            connection.sendall(REQUEST.pack(HELLO, len(CAPABILITIES)) + CAPABILITIES)
            welcome = receive(connection, WELCOME, time.monotonic() + GREETING_S)
        except OSError as error:
            raise DotsError(f"llama.cpp's server does not answer: {error}") from error
        self.connection = connection
        if welcome is None:
            raise DotsError(f"llama.cpp's server does not answer: {self.last_words()}")
        self.welcome = WELCOME.pack(*welcome)
        if welcome[1:3] != VERSION:  # lengths would be checked by another version's rules
            raise DotsError(
                f"llama.cpp's RPC has version {welcome[1]}.{welcome[2]} here, "
                f"not {VERSION[0]}.{VERSION[1]}",
                hint="install llama-cpp-python 0.3.36, or a newer version of dots",
            )

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kills it: nothing that it holds is of use to anybody."""
        if hasattr(self, "connection"):
            self.connection.close()
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(1.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def last_words(self) -> str:
        """Why it has ended or hung up; empty if it hasn't said so."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # it may be about to
        if not self.is_alive():
            self._readers[1].join(1.0)
        lines = self._said.decode("utf-8", "replace").splitlines()
        spoken = [line.strip() for line in lines if line.strip()]
        asserted = [line for line in spoken if "GGML_ASSERT" in line or "what():" in line]
        words = re.sub(r"^/\S*/", "", (asserted or spoken or [""])[-1])[:300]
        status = self._process.poll()
        if status is None:
            return words
        how = f"exit status {status}" if status >= 0 else _signal_name(-status)
        return f"{how}: {words}" if words else how

    def _read_report(self, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            self._report = pipe.readline(LONGEST_REPORT)

    def _read_words(self, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while some := os.read(pipe.fileno(), KEPT_NBYTES):
                self._said = (self._said + some)[-KEPT_NBYTES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
