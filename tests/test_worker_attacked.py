"""`dots worker` under clients that send what they should not: it cuts them off and serves the next.

Real workers, real sockets, llama.cpp at the other end.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dotscli.engine import has_rpc
from dotscli.engine.rpc.admission import Account
from dotscli.engine.rpc.messages import (
    ALLOC,
    ALLOC_BUFFER,
    ALLOCATED,
    ANSWER,
    BUFFER_CLEAR,
    BUFFER_GET_BASE,
    DEVICE_COUNT,
    FREE_BUFFER,
    GET_TENSOR,
    GRAPH_COMPUTE,
    HELLO,
    MEMSET_TENSOR,
    POINTER,
    SET_TENSOR,
    SET_TENSOR_HASH,
)
from tests.rpc_client import Client, graph, operation, tensor, vector
from tests.workers import Worker, running_worker

pytestmark = pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")

GET_ALIGNMENT, COPY_TENSOR, GET_DEVICE_MEMORY, INIT_TENSOR = 1, 9, 11, 12
NOTHING = vector(0, 0, 1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One worker for all attacks: each must leave it as it was."""
    with running_worker() as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(worker: Worker) -> Iterator[None]:
    """After every attack the worker is there for the next client, and holds no more memory."""
    yield
    with Client(worker.address) as client:
        assert client.ask(DEVICE_COUNT) == struct.pack("<I", 1)
    assert worker.process.poll() is None
    assert memory_nbytes(worker) < 600 << 20


def serves(worker: Worker) -> None:
    """Asserts that llama.cpp works for the next client."""
    with Client(worker.address) as client:
        buffer, base = client.allocate(64)
        client.send(SET_TENSOR, vector(buffer, base, 4) + bytes(9) + b"next" * 4)
        got = client.ask(GET_TENSOR, vector(buffer, base, 4) + struct.pack("<QQ", 0, 16))
        assert got == b"next" * 4


def family(worker: Worker) -> list[psutil.Process]:
    parent = psutil.Process(worker.process.pid)
    return [parent, *parent.children()]


def memory_nbytes(worker: Worker) -> int:
    total = 0
    for process in family(worker):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def said(worker: Worker, client: Client) -> str:
    """What the worker says about this client when it cuts it off."""
    assert worker.process.stderr
    for line in worker.process.stderr:
        if f"client {client.name} " in line:
            return line.strip()
    raise AssertionError


@pytest.mark.parametrize(
    ("command", "nbytes", "words"),
    [
        (SET_TENSOR, 1 << 63, "SET_TENSOR of 2^63 bytes for a buffer that it doesn't have"),
        (SET_TENSOR, 4 << 30, "SET_TENSOR of 4.00 GiB for a buffer that it doesn't have"),
        (SET_TENSOR, 304, "SET_TENSOR of 304 B instead of 305"),
        (GRAPH_COMPUTE, (1 << 64) - 1, "GRAPH_COMPUTE of 2^64 bytes: more than any model's"),
        (GRAPH_COMPUTE, 4 << 30, "GRAPH_COMPUTE of 4.00 GiB: more than any model's"),
        (GRAPH_COMPUTE, 4, "GRAPH_COMPUTE of 4 B instead of 8"),
        (SET_TENSOR_HASH, 1 << 40, "SET_TENSOR_HASH of 1.00 TiB instead of 312"),
        (GET_ALIGNMENT, 5, "GET_ALIGNMENT of 5 B instead of 4"),
        (HELLO, 24, "a second greeting"),
        (18, 0, "unknown command 18"),
        (255, 1 << 63, "unknown command 255"),
    ],
)
def test_a_length_that_cannot_be_never_reaches_llama_cpp(
    worker: Worker, command: int, nbytes: int, words: str
) -> None:
    with Client(worker.address) as client:
        client.send(command, bytes(min(nbytes, 312)), nbytes)
        assert client.is_cut_off()
        assert said(worker, client).endswith(f"sent {words}: connection closed")


def test_a_tensor_is_no_longer_than_its_buffer(worker: Worker) -> None:
    for n_too_many in (1, 1 << 30):
        with Client(worker.address) as client:
            buffer, base = client.allocate(1024)
            client.send(SET_TENSOR, vector(buffer, base, 256) + bytes(9), 305 + 1024 + n_too_many)
            assert client.is_cut_off()
            assert "for a buffer of 1.00 KiB" in said(worker, client)
    with Client(worker.address) as client:
        buffer, base = client.allocate(1024)
        client.send(GET_TENSOR, vector(buffer, base, 256) + struct.pack("<QQ", 0, 1 << 62))
        assert client.is_cut_off()
        assert "GET_TENSOR of 2^62 bytes" in said(worker, client)


def test_somebody_elses_buffer_is_none(worker: Worker) -> None:
    with Client(worker.address) as client:
        buffer, base = client.allocate(1024)
        client.send(FREE_BUFFER, POINTER.pack(buffer))
        client.send(BUFFER_CLEAR, POINTER.pack(buffer) + b"\0")
        assert client.is_cut_off()
        assert "BUFFER_CLEAR for a buffer that it doesn't have" in said(worker, client)
    requests = {
        BUFFER_GET_BASE: POINTER.pack(buffer),
        FREE_BUFFER: POINTER.pack(buffer),
        SET_TENSOR: vector(buffer, base, 1) + bytes(13),
        GET_TENSOR: vector(buffer, base, 1) + struct.pack("<QQ", 0, 4),
        MEMSET_TENSOR: vector(buffer, base, 1) + bytes(17),
    }
    for command, request in requests.items():
        with Client(worker.address) as client:
            client.allocate(64)
            client.send(command, request)
            assert client.is_cut_off()
            assert "for a buffer that it doesn't have" in said(worker, client)


def test_memory_ends_where_the_device_ends(worker: Worker) -> None:
    total = worker.facts["devices"][0]["total_bytes"]
    with Client(worker.address) as client:
        for nbytes in (total * 2, 1 << 63, (1 << 64) - 1):
            assert client.allocate(nbytes) == (0, 0)  # llama.cpp's answer: no memory
        pieces = [client.allocate(total // 8)[0] for _ in range(16)]  # of which none is touched
        assert pieces[0]
        assert not pieces[-1]
        client.send(FREE_BUFFER, POINTER.pack(pieces[0]))
        assert client.allocate(total // 8)[0]
        client.send(ALLOC_BUFFER, ALLOC.pack(7, 64))
        assert client.is_cut_off()
        assert "ALLOC_BUFFER for device 7 of 1" in said(worker, client)


def test_buffers_have_a_number() -> None:
    account = Account([1 << 40])
    request = ALLOC.pack(0, 1)
    for address in range(1, 10_001):
        assert account.admit(ALLOC_BUFFER, ALLOC.size, request) is None
        account.allocated(request, ALLOCATED.pack(address, 1))
    refused = account.admit(ALLOC_BUFFER, ALLOC.size, request)
    assert refused == ANSWER.pack(ALLOCATED.size) + ALLOCATED.pack(0, 0)
    account.admit(FREE_BUFFER, 8, POINTER.pack(77))
    assert account.admit(ALLOC_BUFFER, ALLOC.size, request) is None


@pytest.mark.parametrize(
    ("n_nodes", "n_tensors", "nbytes"),
    [
        (1 << 20, 0, 12 + (8 << 20)),  # llama.cpp would take 400 MB for 8
        ((1 << 32) - 1, 1, 12 + 8 + 296),
        (1, 1, 12 + 8 + 296 + 1),
        (2, 1, 12 + 16 + 296),
    ],
)
def test_a_graph_has_no_more_nodes_than_tensors(
    worker: Worker, n_nodes: int, n_tensors: int, nbytes: int
) -> None:
    with Client(worker.address) as client:
        client.send(GRAPH_COMPUTE, struct.pack("<II", 0, n_nodes), nbytes)
        assert client.is_cut_off()
        assert f"with {n_nodes} nodes" in said(worker, client)


def outside(client: Client) -> None:
    buffer, base = client.allocate(64)
    client.send(SET_TENSOR, vector(buffer, base - 4096, 4) + bytes(9 + 16))


def outside_of_the_tensor(client: Client) -> None:
    buffer, base = client.allocate(1024)
    offset = struct.pack("<BQ", 0, 512)
    client.send(SET_TENSOR, vector(buffer, base, 4) + offset + bytes(16))


def unknown_operation(client: Client) -> None:
    buffer, base = client.allocate(64)
    node = tensor(buffer, base, (4, 1, 1, 1), op=1_000_000)
    client.send(GRAPH_COMPUTE, graph([1], [node]))


def without_sources(client: Client) -> None:
    buffer, base = client.allocate(64)
    node = tensor(buffer, base, (4, 1, 1, 1), op=operation("MUL_MAT"))
    client.send(GRAPH_COMPUTE, graph([1], [node]))


def without_a_node(client: Client) -> None:
    client.send(GRAPH_COMPUTE, graph([0], [NOTHING]))


def a_wild_pointer(client: Client) -> None:
    client.allocate(64)
    source = tensor(0, 0, (4, 1, 1, 1), id_=2)
    node = tensor(0, 0, (4, 1, 1, 1), op=operation("SUM"), sources=[2])
    client.send(GRAPH_COMPUTE, graph([1], [node, source]))


def a_chain_without_end(client: Client) -> None:
    n = 60_000
    buffer, base = client.allocate(64)
    links = [
        tensor(buffer, base, (4, 1, 1, 1), id_=i, op=operation("SUM"), sources=[i + 1])
        for i in range(1, n)
    ]
    client.send(GRAPH_COMPUTE, graph([1], [*links, vector(buffer, base, 4)]))


@pytest.mark.parametrize(
    "attack",
    [
        outside,
        outside_of_the_tensor,
        unknown_operation,
        without_sources,
        without_a_node,
        a_wild_pointer,
        a_chain_without_end,
    ],
)
def test_what_kills_llama_cpp_kills_it_for_this_client(
    worker: Worker, attack: Callable[[Client], None]
) -> None:
    with Client(worker.address) as client:
        attack(client)
        assert client.is_cut_off()
        assert "at which llama.cpp gave up" in said(worker, client)
    serves(worker)


def test_a_client_that_leaves_ends_what_it_had_computed(worker: Worker) -> None:
    endless = ((1, (1 << 31) - 1, (1 << 31) - 1, 1), (4, 0, 0, 0))  # 2^62 sums, over one float
    with Client(worker.address) as client:
        buffer, base = client.allocate(64)
        source = tensor(buffer, base, endless[0], nb=endless[1], id_=2)
        node = tensor(buffer, base, (1, 1, 1, 1), op=operation("SUM"), sources=[2])
        client.send(GRAPH_COMPUTE, graph([1], [node, source]))
        client.send(GET_TENSOR, vector(buffer, base, 1) + struct.pack("<QQ", 0, 4))
        (server,) = psutil.Process(worker.process.pid).children()
        assert computes(server)
    server.wait(10)
    serves(worker)


def computes(process: psutil.Process) -> bool:
    before = process.cpu_times().user
    deadline = time.monotonic() + 20
    while process.cpu_times().user < before + 0.3 and time.monotonic() < deadline:
        time.sleep(0.05)
    return process.cpu_times().user >= before + 0.3


def test_one_client_leaves_nothing_for_the_next(worker: Worker) -> None:
    servers = set()
    for _ in range(2):
        with Client(worker.address) as client:
            client.allocate(64)
            (server,) = psutil.Process(worker.process.pid).children()
            servers.add(server.pid)
        server.wait(10)
    assert len(servers) == 2


def test_a_greeting_costs_no_process(worker: Worker) -> None:
    before = waiting(worker)
    for _ in range(3):
        with Client(worker.address) as client:
            client.ask(DEVICE_COUNT)
            client.send(SET_TENSOR, NOTHING + bytes(13))
            assert client.is_cut_off()
    assert waiting(worker) == before


def test_a_process_that_somebody_kills_is_replaced(worker: Worker) -> None:
    waiting(worker).kill()
    serves(worker)


def waiting(worker: Worker) -> psutil.Process:
    """The process that waits for the next client."""
    deadline = time.monotonic() + 30
    seen: list[psutil.Process] = []
    while time.monotonic() < deadline:
        children = psutil.Process(worker.process.pid).children()
        if children == seen and len(seen) == 1:
            return seen[0]
        seen = children
        time.sleep(0.3)
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="where limits can be read")
def test_memory_that_llama_cpp_takes_by_itself_has_an_end(worker: Worker) -> None:
    with Client(worker.address) as client:
        client.allocate(64)
        (server,) = psutil.Process(worker.process.pid).children()
        proc = Path(f"/proc/{server.pid}")
        limits = (proc / "limits").read_text(encoding="ascii").splitlines()
        (line,) = [line for line in limits if line.startswith("Max data size")]
        assert int(line.split()[3]) < 2 * worker.facts["devices"][0]["total_bytes"]
        assert (proc / "oom_score_adj").read_text(encoding="ascii") == "1000\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number: signal.Signals) -> None:
    with running_worker() as worker, Client(worker.address) as client:
        client.allocate(64)
        (server,) = psutil.Process(worker.process.pid).children()
        os.kill(worker.process.pid, number)
        worker.process.wait(30)
        assert client.is_cut_off()
        server.wait(10)


def test_half_a_file_does_not_stay_in_the_cache(tmp_path: Path) -> None:
    data = b"weights " * 512
    with running_worker("--cache", XDG_CACHE_HOME=str(tmp_path)) as worker:
        folder = Path(worker.facts["cache"])
        for size in (len(data), len(data) - 1):  # as if llama.cpp's disk had been full
            with Client(worker.address) as client:
                buffer, base = client.allocate(4096)
                kept = vector(buffer, base, 1024)
                wrong = struct.pack("<QQ", 0, 0x1234)
                assert client.ask(SET_TENSOR_HASH, kept + wrong) == b"\0"
                client.send(SET_TENSOR, kept + struct.pack("<BQ", 1, 0) + data)
                client.ask(GET_TENSOR, kept + struct.pack("<QQ", 0, 4))
                (written,) = folder.iterdir()
                assert written.read_bytes() == data
                (folder / f"{0x1234:016x}").write_bytes(data[:size])
                (server,) = psutil.Process(worker.process.pid).children()
            server.wait(10)
            time.sleep(0.2)
            assert (folder / f"{0x1234:016x}").exists() == (size == len(data))
            for path in folder.iterdir():
                path.unlink()


def test_what_was_not_asked_for_is_not_kept(tmp_path: Path) -> None:
    with (
        running_worker("--cache", XDG_CACHE_HOME=str(tmp_path)) as worker,
        Client(worker.address) as client,
    ):
        buffer, base = client.allocate(4096)
        for _ in range(3):
            client.send(SET_TENSOR, vector(buffer, base, 1024) + b"\1" + bytes(8 + 4096))
        client.ask(GET_TENSOR, vector(buffer, base, 1024) + struct.pack("<QQ", 0, 4))
        assert list(Path(worker.facts["cache"]).iterdir()) == []
