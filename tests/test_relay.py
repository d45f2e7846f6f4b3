"""What lies between a client and llama.cpp's server: bytes as they were, patience with an end."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from dotscli.commands.worker import Seldom
from dotscli.engine import has_rpc
from dotscli.engine.rpc import cache as rpc_cache
from dotscli.engine.rpc import process as rpc_process
from dotscli.engine.rpc import relay as rpc_relay
from dotscli.engine.rpc import session as rpc_session
from dotscli.engine.rpc.cache import CacheWatch
from dotscli.engine.rpc.messages import HASH_REQUEST, SET_HEAD
from dotscli.engine.rpc.pipe import Buffer
from dotscli.engine.rpc.process import ServerProcess
from dotscli.engine.rpc.relay import ClientGoneError, Relay, ServerGoneError, StalledError
from dotscli.engine.rpc.session import Session
from dotscli.errors import DotsError


@contextmanager
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection over loopback: both of its ends."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        near = stack.enter_context(socket.create_connection(listener.getsockname(), 10))
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(10)
        yield near, far


@pytest.fixture(params=["poll and splice", "select and a buffer"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to wait and to copy; the second is what other systems than Linux have."""
    if request.param == "select and a buffer":
        monkeypatch.setattr(rpc_relay, "HANG_UP", 0)
        monkeypatch.setattr(rpc_relay, "pipe", Buffer)


@contextmanager
def relayed(stall_s: float = 10) -> Iterator[tuple[Relay, socket.socket, socket.socket]]:
    """A relay, its client and its server."""
    with ends() as (client, accepted), ends() as (connection, server):
        relay = Relay(accepted, stall_s)
        relay.attach(connection)
        try:
            yield relay, client, server
        finally:
            relay.close()


def read_all(source: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes and (part := source.recv(1 << 16)):
        data += part
    return bytes(data)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 3_333_333])
@pytest.mark.usefixtures("any_system")
def test_bytes_arrive_as_they_were_both_ways(nbytes: int) -> None:
    data = os.urandom(nbytes)
    with relayed() as (relay, client, server):
        for sender, receiver, move in (
            (client, server, relay.pass_on),
            (server, client, relay.pass_back),
        ):
            with ThreadPoolExecutor(2) as others:
                sent = others.submit(sender.sendall, data)
                got = others.submit(read_all, receiver, nbytes)
                move(nbytes)
                sent.result(10)
                assert got.result(10) == data


@pytest.mark.usefixtures("any_system")
def test_what_comes_after_a_message_stays_for_the_next() -> None:
    with relayed() as (relay, client, server):
        client.sendall(b"abcdefgh")
        relay.pass_on(3)
        assert relay.read(2) == b"de"
        relay.pass_on(3)
        assert read_all(server, 6) == b"abcfgh"


@pytest.mark.usefixtures("any_system")
def test_half_a_message_has_a_time_limit() -> None:
    with relayed(stall_s=0.2) as (relay, client, _):
        client.sendall(b"abc")
        with pytest.raises(StalledError):
            relay.read(4)
        client.sendall(b"abc")
        with pytest.raises(StalledError):
            relay.pass_on(4)


def test_a_greeting_that_trickles_has_one_too() -> None:
    with relayed() as (relay, client, _):

        def trickle() -> None:
            for _ in range(20):
                client.sendall(b"a")
                time.sleep(0.05)

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        with pytest.raises(StalledError):
            relay.read(1000, within_s=0.3)
        assert time.monotonic() - started < 5
        thread.join()


@pytest.mark.usefixtures("any_system")
def test_an_answer_that_nobody_reads_has_one() -> None:
    def write(server: socket.socket) -> None:
        with suppress(OSError):  # until the relay gives up
            server.sendall(bytes(64 << 20))

    with relayed(stall_s=0.2) as (relay, _, server):
        writer = threading.Thread(target=write, args=(server,))
        writer.start()
        with pytest.raises(StalledError):
            relay.pass_back(64 << 20)
        server.shutdown(socket.SHUT_RDWR)
        writer.join(10)


@pytest.mark.usefixtures("any_system")
def test_a_client_may_be_silent_between_messages() -> None:
    with relayed(stall_s=0.1) as (relay, client, _):
        threading.Timer(0.5, lambda: client.sendall(b"a")).start()
        relay.wait()
        assert relay.read(1) == b"a"


@pytest.mark.usefixtures("any_system")
def test_who_leaves_is_noticed_while_the_other_is_waited_for() -> None:
    with relayed() as (relay, client, _):
        threading.Timer(0.2, client.close).start()
        with pytest.raises(ClientGoneError):
            relay.read_answer(1)
    with relayed() as (relay, _, server):
        threading.Timer(0.2, server.close).start()
        with pytest.raises(ServerGoneError):
            relay.wait()


@pytest.mark.parametrize("said", [b"", b"\x0e", b"\x0e" + b"\x18" + bytes(7) + bytes(23)])
def test_who_does_not_greet_makes_room(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_session, "GREETING_S", 0.2)
    with ends() as (client, accepted):
        client.sendall(said)
        session = Session(accepted, b"welcome", [], lambda: pytest.fail("claimed"), None)
        assert session.run() == "sent no greeting within 0.2 s"
        assert not session.has_claimed
        assert client.recv(1) == b""


def test_a_full_disk_keeps_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = CacheWatch(tmp_path)
    tensor = bytes(296)
    kept = SET_HEAD.pack(tensor, 1, 0)
    watch.asked(HASH_REQUEST.pack(tensor, 0, 7))
    assert watch.before_set(kept, SET_HEAD.size + 100) == kept
    monkeypatch.setattr(rpc_cache, "RESERVE_NBYTES", 1 << 60)
    watch.asked(HASH_REQUEST.pack(tensor, 0, 7))
    assert watch.before_set(kept, SET_HEAD.size + 100) == SET_HEAD.pack(tensor, 0, 0)


def test_lines_about_clients_come_no_faster_than_they_can_be_read() -> None:
    lines: list[str] = []
    say = Seldom(3, 10.0).passing(lines.append)
    for number in range(100):
        say(str(number))
    time.sleep(0.15)
    say("last")
    assert lines == ["0", "1", "2", "last (and 97 more lines like this)"]


@pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")
def test_another_version_of_the_protocol_is_not_relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_process, "VERSION", (6, 1))
    process = ServerProcess((), 1, None)
    try:
        with pytest.raises(DotsError, match=r"has version 7\.0 here, not 6\.1"):
            process.connect()
    finally:
        process.end()
