"""What is asked of a worker before llama.cpp may talk to it: is it one, of this version, and free.

llama.cpp aborts the process when the other side is no worker or one of another version, and waits
for ever when it says nothing. So greeting and number of devices are exchanged here first, within a
time limit. Nothing that comes back is taken on trust.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from pathlib import Path

from dotscli.engine.lib import llama
from dotscli.engine.rpc.connections import Address
from dotscli.engine.rpc.messages import (
    CAPABILITIES,
    COUNT,
    DEVICE_COUNT,
    HELLO,
    REQUEST,
    WELCOME,
)
from dotscli.errors import DotsError, ExitStatus

START_HINT = "start one there with: dots worker"
TIMEOUT_S = 5.0
MAX_DEVICES = 16


def parse_address(endpoint: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        DotsError: it is no HOST:PORT (exit status 2).
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise DotsError(
            f"invalid --rpc {endpoint!r}",
            hint="give HOST:PORT, with a port from 1 to 65535; separate several by commas",
            exit_status=ExitStatus.USAGE,
        )
    return host, int(port)


def greet(endpoint: str, timeout_s: float = TIMEOUT_S) -> Address:
    """The IPv4 address of the worker at HOST:PORT, which has answered and fits.

    Raises:
        DotsError: nobody answers there in time, or no worker that fits.
    """
    host, port = parse_address(endpoint)
    deadline = time.monotonic() + timeout_s
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        address: Address = found[0][4][:2]  # type: ignore[assignment]  # AF_INET has these two
        connection = socket.create_connection(address, timeout_s)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DotsError(f"no worker answers at {endpoint}: {reason}", hint=START_HINT) from error
    with connection:
        try:
            connection.sendall(REQUEST.pack(HELLO, len(CAPABILITIES)) + CAPABILITIES)
            welcome = receive(connection, WELCOME, deadline)
            _check_version(endpoint, welcome)
            connection.sendall(REQUEST.pack(DEVICE_COUNT, 0))
            count = receive(connection, COUNT, deadline)
        except TimeoutError as error:
            raise DotsError(
                f"the listener at {endpoint} has been silent for {timeout_s:g} s: "
                "a worker serves one client at a time",
                hint="end the other client, or start a second worker on another port",
            ) from error
        except OSError as error:
            raise _no_worker(endpoint) from error
    if count is None or not 0 < count[1] <= MAX_DEVICES:
        raise _no_worker(endpoint)
    return address


def receive(
    connection: socket.socket, layout: struct.Struct, deadline: float
) -> tuple[int, ...] | None:
    """One answer of a known size; None if it is another or the other side hangs up.

    Raises:
        OSError: it isn't there at the deadline (`time.monotonic`), or the connection is lost.
    """
    answer = b""
    while len(answer) < layout.size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(layout.size - len(answer))
        if not part:
            return None
        answer += part
    values = layout.unpack(answer)
    return values if values[0] == layout.size - 8 else None


def _check_version(endpoint: str, welcome: tuple[int, ...] | None) -> None:
    if welcome is None:
        raise _no_worker(endpoint)
    theirs, ours = ".".join(map(str, welcome[1:])), protocol_version()
    if ours and theirs != ours:  # operations go by number, and the patch level counts them
        raise DotsError(
            f"the worker at {endpoint} speaks version {theirs} of llama.cpp's protocol, not {ours}",
            hint="install the same version of llama-cpp-python on both machines",
        )


def protocol_version() -> str:
    """Version of this build's protocol, which only its installed header tells; empty without it."""
    header = Path(llama().__file__).parents[1] / "include" / "ggml-rpc.h"
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    parts = (
        re.search(rf"#define RPC_PROTO_{part}_VERSION\s+(\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    )
    numbers = [found[1] for found in parts if found]
    return ".".join(numbers) if len(numbers) == 3 else ""


def _no_worker(endpoint: str) -> DotsError:
    return DotsError(f"the listener at {endpoint} is not a llama.cpp worker", hint=START_HINT)
