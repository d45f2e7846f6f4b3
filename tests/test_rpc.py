"""What answers at the address of a worker: nobody, impostors, workers that don't fit."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dotscli.engine import Engine, EngineOptions, has_rpc
from dotscli.engine.rpc.greeting import greet, protocol_version
from dotscli.engine.rpc.messages import COUNT, DEVICE_COUNT, HELLO, REQUEST, WELCOME
from dotscli.errors import DotsError
from tests.transcript import command, dots_process, environment

pytestmark = pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def impostor() -> Iterator[Callable[[bytes], str]]:
    """Starts servers that answer the first client with the given bytes."""
    servers: list[socket.socket] = []

    def start(reply: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(64)
                connection.sendall(reply)
                if reply:
                    connection.recv(64)  # hangs up after the other side

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def load(model: Path, endpoint: str) -> None:
    Engine.load(model, EngineOptions(n_threads=1, rpc=(endpoint,))).close()


def test_nobody_there_is_said(model: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(DotsError, match=endpoint) as caught:
        load(model, endpoint)
    assert "dots worker" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["nonsense", "host:", ":50052", "host:99999", "host:-1"])
def test_what_is_no_address_is_a_usage_error(model: Path, endpoint: str) -> None:
    with pytest.raises(DotsError, match="--rpc") as caught:
        load(model, endpoint)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 50, "not a llama.cpp worker"),
        (b"", "not a llama.cpp worker"),
        (b"\x1c\0\0\0\0\0\0\0\x02\0\0\0" + bytes(24), "version 2.0.0"),
    ],
)
def test_a_server_of_another_kind_is_no_crash(
    model: Path, impostor: Callable[[bytes], str], reply: bytes, words: str
) -> None:
    with pytest.raises(DotsError, match=words):
        load(model, impostor(reply))


@pytest.mark.parametrize(
    ("version", "devices", "words"),
    [
        ((7, 0, 200), 1, "speaks version 7.0.200"),
        ((200, 0, 0), 1, "speaks version 200.0.0"),
        (None, 0, "not a llama.cpp worker"),
        (None, 1 << 31, "not a llama.cpp worker"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused(
    impostor: Callable[[bytes], str],
    version: tuple[int, int, int] | None,
    devices: int,
    words: str,
) -> None:
    numbers = version or tuple(int(part) for part in protocol_version().split("."))
    reply = WELCOME.pack(WELCOME.size - 8, *numbers) + COUNT.pack(COUNT.size - 8, devices)
    with pytest.raises(DotsError, match=words):
        greet(impostor(reply))


@given(reply=st.binary(max_size=80))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_it_answers_is_one_line(impostor: Callable[[bytes], str], reply: bytes) -> None:
    with pytest.raises(DotsError):
        greet(impostor(reply), timeout_s=0.05)


GET_ALIGNMENT, GET_MAX_SIZE, GET_DEVICE_MEMORY = 1, 2, 11
HONEST = {
    HELLO: b"\x07\0\0" + bytes(25),
    DEVICE_COUNT: struct.pack("<I", 1),
    GET_ALIGNMENT: struct.pack("<Q", 32),
    GET_MAX_SIZE: struct.pack("<Q", (1 << 64) - 1),
    GET_DEVICE_MEMORY: struct.pack("<QQ", 1 << 30, 1 << 30),
}


@contextmanager
def lying_worker(lies: Mapping[int, bytes], says_nbytes: int | None = None) -> Iterator[str]:
    """A worker as far as the loading of a model, but for what it answers to some commands."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while header := connection.recv(REQUEST.size, socket.MSG_WAITALL):
                    command, nbytes = REQUEST.unpack(header)
                    connection.recv(nbytes, socket.MSG_WAITALL)
                    answer = lies.get(command, HONEST.get(command, b""))
                    if not answer:
                        time.sleep(60)
                    is_lie = command in lies and says_nbytes is not None
                    length = says_nbytes if is_lie else len(answer)
                    connection.sendall(struct.pack("<Q", length) + answer)

        def accept() -> None:
            with suppress(OSError):  # until the end of the block
                while True:
                    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({GET_ALIGNMENT: struct.pack("<Q", 0)}, "wants tensors at multiples of 0 bytes"),
        ({GET_ALIGNMENT: struct.pack("<Q", 3)}, "wants tensors at multiples of 3 bytes"),
        (
            {GET_ALIGNMENT: struct.pack("<Q", 1 << 63)},
            f"wants tensors at multiples of {1 << 63} bytes",
        ),
        (
            {GET_DEVICE_MEMORY: struct.pack("<QQ", (1 << 64) - 1, (1 << 64) - 1)},
            f"reports {(1 << 64) - 1} of {(1 << 64) - 1} bytes of memory as free",
        ),
        ({GET_DEVICE_MEMORY: struct.pack("<QQ", 2, 1)}, "reports 2 of 1 bytes of memory as free"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_the_load(
    model: Path, lies: dict[int, bytes], words: str
) -> None:
    with lying_worker(lies) as endpoint:
        done = dots_process("prompt", "-m", model, "--rpc", endpoint, "a")
        assert done.returncode == 1
        assert f"error: device 0 of the worker at {endpoint} {words}" in done.stderr.decode()


@pytest.mark.parametrize("nbytes", [0, 4 << 30, 1 << 63])
def test_an_answer_of_another_length_is_one_line_and_no_memory(model: Path, nbytes: int) -> None:
    with lying_worker({GET_DEVICE_MEMORY: bytes(16)}, nbytes) as endpoint:
        done = dots_process("prompt", "-m", model, "--rpc", endpoint, "a")
        assert done.returncode == 1
        lines = done.stderr.decode().splitlines()
        assert lines[0] == (
            f"error: the worker at {endpoint} does not answer, or not like a worker"
        )


def test_a_worker_that_falls_silent_after_its_greeting_is_given_up(model: Path) -> None:
    script = """
import sys
from dotscli.cli.app import run
from dotscli.engine.rpc import client as rpc
from dotscli.terminal.terminal import Terminal
rpc.ADDING_S = 0.3
sys.exit(run(sys.argv[1:], Terminal.system()))
"""
    with lying_worker({GET_ALIGNMENT: b""}) as endpoint:
        done = subprocess.run(
            [*command()[:1], "-c", script, "prompt", "-m", model, "--rpc", endpoint, "a"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert f"the worker at {endpoint} does not answer" in done.stderr


def test_an_answer_that_trickles_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):  # the other side hangs up
                for _ in range(100):
                    connection.sendall(b"\x1c")
                    time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(DotsError, match="has been silent"):
            greet(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5)
        assert time.monotonic() - started < 3
