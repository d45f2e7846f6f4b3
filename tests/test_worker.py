"""`dots worker` and `--rpc`: real processes on the loopback interface, and what ends them."""

from __future__ import annotations

import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from dotscli.engine import has_rpc
from dotscli.engine.rpc import client as rpc
from dotscli.engine.rpc import server as rpc_server
from dotscli.engine.rpc.connections import limit_waits
from dotscli.engine.rpc.greeting import greet, protocol_version
from dotscli.errors import DotsError
from tests.transcript import command, dots, dots_process, environment, on_a_terminal
from tests.workers import Worker, running_worker

pytestmark = pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")

# A long answer, whatever the model: letters only, and no way to end before a thousand of them.
ANSWER = 'root ::= "ANSWER" [a-z]{500} [a-z]{500}'
LONG = ("--grammar", ANSWER, "--no-template", "-c", "2048")


@contextmanager
def answering(model: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `dots prompt` that has begun with a long answer."""
    process = subprocess.Popen(
        command("prompt", "-m", model, *LONG, *flags, "a"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def begin(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    said = process.stdout.read(5)
    assert len(said) == 5, process.stderr and process.stderr.read()
    return said


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status and stderr."""
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr.decode()


def lines_about(address: str) -> str:
    return (
        f"error: the worker at {address} is gone\n"
        "hint: check that machine for the reason; start one there with: dots worker\n"
    )


def test_the_answer_is_the_same_on_one_worker_and_on_two(tiny_gguf: Path) -> None:
    asked = ("prompt", "-m", tiny_gguf, "--temp", "0", "-n", "24", "What is dots?")
    alone = dots_process(*asked)
    with running_worker() as one, running_worker() as two:
        for rpc_flag in (one.address, f"{one.address},{two.address}"):
            together = dots_process(*asked, "--rpc", rpc_flag, "-v")
            assert together.returncode == 0, together.stderr.decode()
            assert together.stdout == alone.stdout
        assert b"RPC1" in together.stderr


def test_hot_experts_live_on_a_worker(tiny_gguf: Path) -> None:
    asked = ("prompt", "-m", tiny_gguf, "--temp", "0", "-n", "24", "--stats", "What is dots?")
    alone = dots_process(*asked)
    with running_worker() as worker:
        there = ("--rpc", worker.address, "--hot", "1M", "--hot-device", "RPC0")
        for layers in ("0", "all"):
            together = dots_process(*asked, *there, "-ngl", layers)
            assert together.returncode == 0, together.stderr.decode()
            assert together.stdout == alone.stdout
            assert b" \xc2\xb7 hot " in together.stderr


def test_a_worker_that_dies_is_one_line_and_what_was_said_stays(tiny_gguf: Path) -> None:
    with running_worker() as worker, answering(tiny_gguf, "--rpc", worker.address) as client:
        begin(client)
        worker.process.kill()
        assert end(client) == (1, lines_about(worker.address))


def test_of_several_workers_the_one_that_died_is_named(tiny_gguf: Path) -> None:
    with running_worker() as one, running_worker() as two:
        both = f"{one.address},{two.address}"
        with answering(tiny_gguf, "--rpc", both) as client:
            begin(client)
            two.process.kill()
            assert end(client) == (1, lines_about(two.address))


def test_a_worker_with_hot_experts_that_dies_is_one_line(tiny_gguf: Path) -> None:
    with running_worker() as worker:
        there = ("--rpc", worker.address, "--hot", "1M", "--hot-device", "RPC0", "-ngl", "0")
        with answering(tiny_gguf, *there) as client:
            begin(client)
            worker.process.kill()
            status, stderr = end(client)
            assert status == 1
            assert stderr.endswith(lines_about(worker.address))


def test_a_worker_that_hangs_ends_with_the_second_interrupt(tiny_gguf: Path) -> None:
    with running_worker() as worker, answering(tiny_gguf, "--rpc", worker.address) as client:
        begin(client)
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        client.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert client.poll() is None  # it may be in the middle of a long batch
        client.send_signal(signal.SIGINT)
        status, stderr = end(client)
        assert status == 130
        assert f"error: the worker at {worker.address} does not answer" in stderr


def test_silence_has_a_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            limit_waits(address, silence_s=1)
            started = time.monotonic()
            with pytest.raises(BlockingIOError):
                client.recv(1)
            assert 0.5 < time.monotonic() - started < 30
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_terminal_is_as_before_when_a_worker_dies_in_a_chat(tiny_gguf: Path) -> None:
    with (
        running_worker() as worker,
        on_a_terminal(
            "chat", "-m", tiny_gguf, "--grammar", ANSWER, "--rpc", worker.address
        ) as screen,
    ):
        screen.wait_for("ctx 0/")
        screen.type("hello\r")
        screen.wait_for("ANSWER")
        worker.process.kill()
        screen.wait_for("\r\nerror: the worker at")
        assert screen.wait() == 1
        local_modes = termios.tcgetattr(screen.master)[3]
        assert local_modes & termios.ECHO
        assert local_modes & termios.ICANON


def test_leaving_a_chat_whose_worker_has_died_is_no_error(tiny_gguf: Path) -> None:
    with running_worker() as worker:
        process = subprocess.Popen(
            command("chat", "-m", tiny_gguf, "-n", "8", "--rpc", worker.address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline()
        worker.process.kill()
        worker.process.wait()
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_an_abort_of_any_kind_is_one_line() -> None:
    script = """
import ctypes
from dotscli.engine import say_at_abort
from dotscli.engine.lib import ggml
say_at_abort(lambda error: print(error.message, flush=True))
abort = ggml("ggml_abort", None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
abort(b"ggml-cuda.cu", 7, b"out of memory")
"""
    done = subprocess.run(
        [*command()[:1], "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "llama.cpp aborted: ggml-cuda.cu:7: out of memory\n",
        "",
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_worker_and_its_stdout_is_one_document(
    tiny_gguf: Path, number: signal.Signals, status: int
) -> None:
    with running_worker() as worker, answering(tiny_gguf, "--rpc", worker.address) as client:
        begin(client)
        worker.process.send_signal(number)
        stdout, stderr = worker.process.communicate(timeout=30)
        assert (worker.process.returncode, stdout) == (status, "")
        assert "Ctrl-C stops it" in stderr
        assert "Traceback" not in stderr
        assert end(client) == (1, lines_about(worker.address))


def test_a_client_that_is_killed_makes_room_for_the_next(tiny_gguf: Path) -> None:
    with running_worker() as worker:
        with answering(tiny_gguf, "--rpc", worker.address) as client:
            begin(client)
            client.kill()
        with answering(tiny_gguf, "--rpc", worker.address) as client:
            begin(client)


@pytest.mark.parametrize(
    "bytes_", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x0e" + b"\xff" * 100, b"\xff" * 4000]
)
def test_a_stranger_does_not_end_the_worker(worker: Worker, bytes_: bytes) -> None:
    host, _, port = worker.address.partition(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(bytes_)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            stranger.recv(1)
    assert greet(worker.address) == (host, int(port))


def test_a_busy_worker_is_said() -> None:
    with running_worker() as worker:
        host, _, port = worker.address.partition(":")
        with (
            socket.create_connection((host, int(port))),  # says nothing: as good as a long answer
            pytest.raises(DotsError, match="one client at a time") as caught,
        ):
            greet(worker.address, timeout_s=0.5)
        assert "second worker" in caught.value.hint
        assert greet(worker.address) == (host, int(port))


@pytest.fixture
def worker() -> Iterator[Worker]:
    with running_worker() as running:
        yield running


def test_it_says_what_it_offers(worker: Worker) -> None:
    assert worker.facts["address"].startswith("127.0.0.1:")
    assert worker.facts["protocol"] == protocol_version()
    assert [device["name"] for device in worker.facts["devices"]] == ["CPU"]
    assert worker.facts["devices"][0]["free_bytes"] > 0
    assert worker.facts["cache"] is None


def test_it_says_how_to_use_it() -> None:
    with on_a_terminal("worker", "--port", "0", columns=100) as screen:
        said = screen.wait_for("Ctrl-C stops it")
        assert "CPU" in said
        assert "dots chat --rpc 127.0.0.1:" in said
        assert "ssh -N -L" in said
        screen.type("\x03")
        assert screen.wait() == 130


def test_a_port_in_use_is_refused(worker: Worker) -> None:
    port = worker.address.rpartition(":")[2]
    done = dots("worker", "--port", port)
    assert done.exit_status == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
    assert f"--port {int(port) + 1}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--host", "192.0.2.1"), 1, "can't listen on 192.0.2.1:50052"),
        (("--host", "::1"), 2, "--host ::1 is not an IPv4 address"),
        (("--device", "CUDA7"), 2, "--device 'CUDA7': no such device"),
        (("--port", "65536"), 2, "--port"),
    ],
)
def test_what_it_cannot_offer_is_refused(flags: tuple[str, str], status: int, words: str) -> None:
    done = dots("worker", *flags)
    assert done.exit_status == status
    assert words in done.stderr
    assert done.stdout == ""


def test_a_build_without_rpc_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_registry", lambda: None)
    done = dots("worker")
    assert done.exit_status == 1
    assert "built without RPC" in done.stderr
    assert "-DGGML_RPC=on" in done.stderr


def test_an_open_port_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(rpc_server.Server):
        def __init__(self, *_: object) -> None:
            self.address = host, 50052
            self.devices = []

        def run(self, *_: object) -> NoReturn:
            raise DotsError("has ended")

        def close(self) -> None:
            pass

    monkeypatch.setattr(rpc_server, "listen", lambda host, port: nullcontext())
    monkeypatch.setattr(rpc_server, "Server", Ended)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True), ("10.0.0.7", True)):
        done = dots("worker", "--host", host)
        assert ("no password and no encryption" in done.stderr) == warned
        assert "has ended" in done.stderr


def test_the_cache_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with running_worker("--cache", XDG_CACHE_HOME=str(tmp_path)) as worker:
        folder = Path(worker.facts["cache"])
        assert folder.is_dir()
        assert tmp_path in folder.parents
