"""A worker: takes one client after the other, each with a process of llama.cpp's server for itself.

This process reads nothing of a client but lengths and addresses, hands the rest on, and never calls
llama.cpp. What it holds:
- a request of any length costs no more memory than the client was given, and one that llama.cpp
  can't stand, or computes for ever, ends the client's process: the next client gets a new one;
- a client that doesn't greet, or stops in the middle of a message, makes room after a time limit;
- nothing of a client is left for the next, but what it had put into the cache.
What it doesn't hold: whoever has greeted may keep the others waiting, an operation with wrong
numbers may overwrite memory of llama.cpp's process and make it execute code, with the rights of
whoever runs the worker, and nothing is encrypted or asks for a password.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dotscli.engine.rpc.cache import CacheWatch
from dotscli.engine.rpc.connections import Address
from dotscli.engine.rpc.process import ServerProcess
from dotscli.engine.rpc.session import Session
from dotscli.errors import DotsError, ExitStatus

WAITING = 16  # clients; one more isn't answered
ATTEMPTS = 3  # at starting a process


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at an IPv4 address; port 0 becomes one that is free.

    Raises:
        DotsError: this machine has no such address, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise DotsError(
            f"--host {host} is not an IPv4 address: {error.strerror or error}",
            hint="give 127.0.0.1, an address of this machine, or 0.0.0.0 for all of them",
            exit_status=ExitStatus.USAGE,
        ) from error
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it would take a port from its owner
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(found[0][4])
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise DotsError(
            f"can't listen on {host}:{port}: {error.strerror or error}",
            hint=f"choose another port: --port {port + 1}" if taken else "check --host and --port",
        ) from error
    return listener


class Server:
    """A worker that serves from `run` on.

    Args:
        listener: of `listen`.
        names: of the devices to offer; without names every GPU, else the CPU.
        n_threads: of a CPU among them.
        cache: a folder for large tensors that clients have sent, so that they need not again.

    Attributes:
        address: where it listens.
        devices: what clients see: name, type, description, free_bytes and total_bytes of each.

    Raises:
        DotsError: it can't offer these devices, or llama.cpp's server doesn't start.
    """

    def __init__(
        self, listener: socket.socket, names: Sequence[str], n_threads: int, cache: Path | None
    ) -> None:
        self._listener = listener
        self._settings = (names, n_threads, cache)
        self._process = ServerProcess(*self._settings)
        try:
            self._process.connect()
            self.address: Address = listener.getsockname()
            self.devices = self._process.devices
            self._welcome = self._process.welcome
        except BaseException:
            self.close()
            raise

    def run(self, note: Callable[[str], None], warn: Callable[[str], None]) -> NoReturn:
        """Serves clients for ever, and says who comes, who goes and who was cut off why.

        Raises:
            DotsError: llama.cpp's server doesn't start any more.
        """
        while True:
            try:
                client, (ip, port) = self._listener.accept()
            except ConnectionError:  # gone before it was its turn
                continue
            self._serve(client, f"{ip}:{port}", note, warn)

    def close(self) -> None:
        """Ends llama.cpp's process, and with it the connection of a client."""
        self._listener.close()
        self._process.end()

    def _serve(
        self,
        client: socket.socket,
        name: str,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        cache = self._settings[2]
        watch = CacheWatch(cache) if cache else None

        def claim() -> ServerProcess:
            self._wait_for_process()
            note(f"{name} is connected")
            return self._process

        try:
            session = Session(client, self._welcome, self.devices, claim, watch)
        except OSError:  # macOS: it has hung up already
            client.close()
            return
        try:
            reason = session.run()
        finally:
            if session.has_claimed:
                self._process.end()
                if watch:
                    watch.close()
        if reason:
            warn(f"client {name} {reason}: connection closed")
        elif session.has_claimed:
            note(f"{name} has left")
        if session.has_claimed:
            self._process = ServerProcess(*self._settings)  # warm when the next one comes

    def _wait_for_process(self) -> None:
        for _ in range(ATTEMPTS - 1):
            try:
                self._process.connect()
                if self._process.is_alive():
                    return
            except DotsError:
                pass  # short of memory for a moment, or somebody else found its port
            self._process.end()
            self._process = ServerProcess(*self._settings)
        self._process.connect()
