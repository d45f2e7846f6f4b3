"""One client of a worker, from its greeting to its end: every message checked, then passed on.

A greeting is answered here, so that who only looks costs no process; the first request that needs
llama.cpp claims its server. Whoever has greeted may stay for as long as it likes, as a chat does at
its prompt. What is passed on but turns out to be wrong ends llama.cpp's process, not this one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from dotscli.engine.available import available_memory
from dotscli.engine.rpc.admission import Account, RefusedError, check_length
from dotscli.engine.rpc.cache import CacheWatch
from dotscli.engine.rpc.messages import (
    ALLOC_BUFFER,
    ANSWER,
    CAPABILITIES,
    COUNT,
    DEVICE_COUNT,
    GET_REQUEST,
    GET_TENSOR,
    HELLO,
    REQUEST,
    SET_TENSOR,
    SET_TENSOR_HASH,
)
from dotscli.engine.rpc.process import ServerProcess
from dotscli.engine.rpc.relay import ClientGoneError, Relay, ServerGoneError, StalledError

GREETING_S = 5.0
SMALL_NBYTES = 1 << 14  # of what follows a head: passed on with it


class Session:
    """The dialogue with one client.

    Args:
        client: its connection, which is closed at the end.
        welcome: what llama.cpp's server says to a greeting.
        devices: that it offers, as `ServerProcess.devices`.
        claim: called at most once: gives the server, started and connected to.
        cache: looks after the folder of weights, if there is one.
    """

    def __init__(
        self,
        client: socket.socket,
        welcome: bytes,
        devices: Sequence[dict[str, Any]],
        claim: Callable[[], ServerProcess],
        cache: CacheWatch | None,
    ) -> None:
        self._relay = Relay(client)
        self._welcome = welcome
        self._devices = devices
        self._claim = claim
        self._cache = cache
        self._server: ServerProcess | None = None
        self._account = Account(capacities(devices))
        self._last = ""  # the name of a command

    @property
    def has_claimed(self) -> bool:
        """Whether the server has worked for this client, and can't for another."""
        return self._server is not None

    def run(self) -> str:
        """Until the client leaves or is cut off; why it was, as the rest of "client X ...".

        Empty if it has left.

        Raises:
            DotsError: llama.cpp's server can't be started any more.
        """
        try:
            self._greet()
            while True:
                self._pass_message()
        except ClientGoneError:
            return ""
        except RefusedError as refused:
            return f"sent {refused}"
        except StalledError:
            if not self._last:
                return f"sent no greeting within {GREETING_S:g} s"
            return f"stalled in the middle of {self._last}"
        except ServerGoneError:
            words = self._server.last_words() if self._server else ""
            return f"sent {self._last}, at which llama.cpp gave up" + (
                f" ({words})" if words else ""
            )
        finally:
            self._relay.close()

    def _greet(self) -> None:
        number, nbytes = REQUEST.unpack(self._relay.read(REQUEST.size, GREETING_S))
        if (number, nbytes) != (HELLO, len(CAPABILITIES)):
            raise RefusedError("no greeting of llama.cpp's RPC")
        self._relay.read(nbytes, GREETING_S)  # what it could do besides TCP: not through here
        self._last = "HELLO"
        self._relay.answer(self._welcome)

    def _pass_message(self) -> None:
        relay = self._relay
        relay.wait()
        number, nbytes = REQUEST.unpack(relay.read(REQUEST.size))
        command = check_length(number, nbytes)
        self._last = command.name
        head = relay.read(command.head)
        if number == DEVICE_COUNT:
            relay.answer(COUNT.pack(COUNT.size - ANSWER.size, len(self._devices)))
            return
        if number == HELLO:
            raise RefusedError("a second greeting")
        if answer := self._account.admit(number, nbytes, head):
            relay.answer(answer)
            return
        if not self._server:
            self._server = self._claim()
            relay.attach(self._server.connection)
        if self._cache and number == SET_TENSOR:
            head = self._cache.before_set(head, nbytes)
        if self._cache and number == SET_TENSOR_HASH:
            self._cache.asked(head)
        more = nbytes - len(head)
        small = relay.read(more) if more < SMALL_NBYTES else b""
        relay.send(REQUEST.pack(number, nbytes) + head + small)
        relay.pass_on(more - len(small))
        if command.answer is not None:
            self._pass_answer(number, command.answer, head)

    def _pass_answer(self, number: int, nbytes: int, head: bytes) -> None:
        relay = self._relay
        if number == GET_TENSOR:
            nbytes = GET_REQUEST.unpack(head)[2]
            size = relay.read_answer(ANSWER.size)
            if ANSWER.unpack(size) != (nbytes,):  # its process may be in a client's hands
                raise ServerGoneError
            relay.answer(size)
            relay.pass_back(nbytes)
            return
        answer = relay.read_answer(ANSWER.size + nbytes)
        if ANSWER.unpack_from(answer) != (nbytes,):
            raise ServerGoneError
        if number == ALLOC_BUFFER:
            self._account.allocated(head, answer[ANSWER.size :])
        relay.answer(answer)


def capacities(devices: Sequence[dict[str, Any]]) -> list[int]:
    """How many bytes a client may allocate on each device.

    llama.cpp lets a CPU promise more memory than there is, and dies when it is used; other devices
    say no when they are full.
    """
    import psutil

    here = available_memory().nbytes + int(psutil.swap_memory().free)
    return [
        here if device["type"] == "CPU" or not device["total_bytes"] else int(device["total_bytes"])
        for device in devices
    ]
