"""Devices of other machines: a worker of llama.cpp on the loopback interface, and impostors."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dotscli.engine import Engine, EngineOptions, has_rpc
from dotscli.engine.lib import ggml
from dotscli.errors import DotsError
from tests import gguf_maker

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import ctypes, sys
from dotscli.engine.lib import ggml
pointer = ctypes.c_void_p
registry = ggml("ggml_backend_reg_by_name", pointer, ctypes.c_char_p)(b"RPC")
find = ggml("ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t,
                         ctypes.POINTER(pointer))(find(registry, b"ggml_backend_rpc_start_server"))
devices = (pointer * 1)(ggml("ggml_backend_dev_by_type", pointer, ctypes.c_int)(0))
start(sys.argv[1].encode(), None, 1, 1, devices)
"""
# A device stays known to the process that added it, so each answer comes from a new one.
CLIENT = """
import sys
from pathlib import Path
from dotscli.engine import Engine, EngineOptions, devices
from dotscli.sampling import Sampling
path, endpoint = sys.argv[1:]
for rpc in ((), (endpoint,)):
    with Engine.load(Path(path), EngineOptions(n_threads=1, n_ctx=256, rpc=rpc)) as engine:
        answer = engine.generate([1, 2, 3], Sampling(temp=0.0), n_predict=8)
        print([piece.token for piece in answer], [device.name for device in devices()])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def impostor() -> Iterator[Callable[[bytes], str]]:
    """Starts servers that answer everybody with the given bytes and then hang up."""
    servers: list[socket.socket] = []

    def start(reply: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_maker.dots1().write(tmp_path_factory.mktemp("rpc") / "tiny.gguf")


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
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 50, "no llama.cpp worker"),
        (b"", "no llama.cpp worker"),
        (b"\x1c\0\0\0\0\0\0\0\x02\0\0\0" + bytes(24), "version 2"),
    ],
)
def test_a_server_of_another_kind_is_no_crash(
    model: Path, impostor: Callable[[bytes], str], reply: bytes, words: str
) -> None:
    with pytest.raises(DotsError, match=words):
        load(model, impostor(reply))


@pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")
def test_a_worker_computes_the_same_answer(model: Path) -> None:
    assert ggml("ggml_backend_reg_count", int)() >= 2
    endpoint = f"127.0.0.1:{free_port()}"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, endpoint], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))).close()
                break
            except OSError:
                time.sleep(0.05)
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(model), endpoint],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        worker.kill()
        worker.wait()
    assert done.returncode == 0, done.stderr
    alone, together = done.stdout.splitlines()
    assert together == alone.replace("['CPU']", "['CPU', 'RPC0']")
