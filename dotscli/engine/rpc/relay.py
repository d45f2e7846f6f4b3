"""Bytes between a client and llama.cpp's server, with an eye on whether both are still there.

Two TCP connections, and one that is waited for keeps nobody from noticing that the other has ended.
It knows nothing of messages. A client that is silent between two of them is not limited in time:
somebody thinks about the next question. One that stops in the middle of one is.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress

from dotscli.engine.rpc.connections import notice_loss
from dotscli.engine.rpc.pipe import pipe

STALL_S = 60.0  # without one byte, in the middle of a message or of an answer
AHEAD_NBYTES = 1 << 16  # read of a client at once, so that small messages cost one call
LOOK_S = 0.5  # how often the other side is looked at where poll() can't watch it
HANG_UP = getattr(select, "POLLRDHUP", 0)


class ClientGoneError(Exception):
    """The client has closed the connection, or lost it."""


class ServerGoneError(Exception):
    """llama.cpp's server has closed the connection, or its process has ended."""


class StalledError(Exception):
    """The client neither sends nor takes what it would have to."""


class Relay:
    """A client's connection and, once there is one, that of the server that works for it."""

    def __init__(self, client: socket.socket, stall_s: float = STALL_S) -> None:
        self._client = client
        self._server: socket.socket | None = None
        self._stall_s = stall_s
        self._pipe = pipe()
        self._ahead = memoryview(bytearray(AHEAD_NBYTES))
        self._unread = self._ahead[:0]  # what has come of the client and was not asked for yet
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        notice_loss(client)

    def attach(self, server: socket.socket) -> None:
        """From now on requests can be passed on."""
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setblocking(False)
        self._server = server

    def close(self) -> None:
        """Hangs up on the client, which gets what it has been sent."""
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
        self._client.close()
        self._pipe.close()

    def wait(self) -> None:
        """Until the client says something or hangs up, however long it takes.

        Raises:
            ServerGoneError: the server has ended meanwhile.
        """
        if not self._unread:
            self._ready(self._client, limit_s=None)

    def read(self, nbytes: int, within_s: float | None = None) -> bytes:
        """So many bytes of the client; with `within_s` all of them must be there after that.

        Raises:
            ClientGoneError, ServerGoneError, StalledError: they don't come.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        data = bytearray()
        while len(data) < nbytes:
            if not self._unread:
                count = self._receive(self._client, self._ahead, deadline)
                self._unread = self._ahead[:count]
            data += self._take(nbytes - len(data))
        return bytes(data)

    def answer(self, data: bytes) -> None:
        """Bytes to the client.

        Raises:
            ClientGoneError, ServerGoneError, StalledError: it doesn't take them.
        """
        self._write(self._client, data)

    def read_answer(self, nbytes: int) -> bytes:
        """So many bytes of the server, however long it takes.

        Raises:
            ClientGoneError, ServerGoneError: one of them has ended.
        """
        data = bytearray(nbytes)
        view = memoryview(data)
        while view:
            view = view[self._receive(self._attached, view) :]
        return bytes(data)

    def send(self, data: bytes) -> None:
        """Bytes to the server.

        Raises:
            ClientGoneError, ServerGoneError: one of them has ended.
        """
        self._write(self._attached, data)

    def pass_on(self, nbytes: int) -> None:
        """The next bytes of the client go to the server, as they come.

        Raises:
            ClientGoneError, ServerGoneError, StalledError: they don't come, or can't go there.
        """
        here = self._take(nbytes)
        self.send(here)
        self._move(self._client, self._attached, nbytes - len(here))

    def pass_back(self, nbytes: int) -> None:
        """The next bytes of the server go to the client, as they come.

        Raises:
            ClientGoneError, ServerGoneError, StalledError: as above.
        """
        self._move(self._attached, self._client, nbytes)

    @property
    def _attached(self) -> socket.socket:
        assert self._server
        return self._server

    def _take(self, nbytes: int) -> bytes:
        """Up to so many of the bytes that were read ahead."""
        taken = bytes(self._unread[:nbytes])
        self._unread = self._unread[nbytes:]
        return taken

    def _receive(
        self, source: socket.socket, room: memoryview, deadline: float | None = None
    ) -> int:
        """At least one byte, as many as there are and fit."""
        while True:
            try:
                if count := source.recv_into(room):
                    return count
            except BlockingIOError:
                limit = self._limit(source) if deadline is None else deadline - time.monotonic()
                self._ready(source, limit_s=limit)
                continue
            except OSError as error:
                raise self._gone(source) from error
            raise self._gone(source)

    def _write(self, target: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[target.send(view) :]
            except BlockingIOError:
                self._ready(target, limit_s=self._limit(target), to_write=True)
            except OSError as error:
                raise self._gone(target) from error

    def _move(self, source: socket.socket, target: socket.socket, nbytes: int) -> None:
        while nbytes:
            try:
                count = self._pipe.fill(source, nbytes)
            except BlockingIOError:
                self._ready(source, limit_s=self._limit(source))
                continue
            except OSError as error:
                raise self._gone(source) from error
            if not count:
                raise self._gone(source)
            nbytes -= count
            while count:
                try:
                    count -= self._pipe.drain(target, count, more=nbytes > 0)
                except BlockingIOError:
                    self._ready(target, limit_s=self._limit(target), to_write=True)
                except OSError as error:
                    raise self._gone(target) from error

    def _limit(self, side: socket.socket) -> float | None:
        return self._stall_s if side is self._client else None  # a server may compute for long

    def _gone(self, side: socket.socket) -> Exception:
        return ClientGoneError() if side is self._client else ServerGoneError()

    def _ready(
        self, wanted: socket.socket, *, limit_s: float | None, to_write: bool = False
    ) -> None:
        """Until one side can be read or written; raises if the other has hung up."""
        other = self._server if wanted is self._client else self._client
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            is_ready, has_ended = (_poll if HANG_UP else _look)(wanted, other, to_write, left)
            if is_ready:
                return
            if has_ended:
                assert other
                raise self._gone(other)
            if left == 0.0:
                raise StalledError


def _poll(
    wanted: socket.socket, other: socket.socket | None, to_write: bool, limit_s: float | None
) -> tuple[bool, bool]:
    """Whether the wanted side is ready, and whether the other has hung up."""
    poll = select.poll()
    poll.register(wanted, select.POLLOUT if to_write else select.POLLIN)
    if other:
        poll.register(other, HANG_UP)
    events = {descriptor for descriptor, _ in poll.poll(limit_s and limit_s * 1000)}
    return wanted.fileno() in events, bool(other and other.fileno() in events)


def _look(
    wanted: socket.socket, other: socket.socket | None, to_write: bool, limit_s: float | None
) -> tuple[bool, bool]:
    """The same where poll() can't tell that somebody has hung up, or there is no poll()."""
    sides = [wanted]
    limit_s = LOOK_S if limit_s is None else min(LOOK_S, limit_s)
    ready = select.select([] if to_write else sides, sides if to_write else [], [], limit_s)
    if any(ready) or not other:
        return any(ready), False
    try:
        return False, not other.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False, False
    except OSError:
        return False, True
