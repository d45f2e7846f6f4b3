"""`dots worker` over TCP: whatever a stranger sends, it answers the next client.

The worker is a process of its own, which stays as long as it lives; its death, silence or weight
is what is looked for. Peers have no password, so everything that can be sent is an attack.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from random import Random

from dotscli.engine.rpc.greeting import greet
from dotscli.errors import DotsError
from tests.fuzz.mutate import damaged, number, packed, patched, times
from tests.fuzz.target import Target, WrongResult
from tests.fuzz.worker_messages import (
    AT_ONCE,
    HEAD,
    NUMBERS,
    SILENT,
    TENSOR,
    conversation,
    divided,
    encoded,
    resolved,
)  # fmt: skip
from tests.workers import Worker, running_worker

START_S = 30.0  # for the first answer that llama.cpp's process gives, which is being started
ANSWER_S = 2.0  # for another; a worker that says nothing by then has refused
GREET_S = 3.0
MAX_ANSWER = 1 << 20
# A client may fill what a device has, which here is the machine's memory; so it gets less of it.
WORKER_NBYTES = 768 << 20


class WorkerMessages(Target):
    """The bytes of one connection."""

    def open(self) -> None:
        self.running = contextlib.ExitStack()
        self.worker: Worker | None = None

    def make(self, rng: Random) -> bytes:
        # A client costs the worker a process, so it tries several things.
        repeats = rng.choice((1, 4))
        messages = conversation(repeats)
        for _ in range(repeats * times(rng)):
            at = rng.randrange(1, len(messages))
            command, payload = messages[at]
            match rng.randrange(10):
                case 0:
                    messages[at] = rng.randrange(256 if rng.random() < 0.2 else 20), payload
                case 1:
                    del messages[at]
                case 2:
                    messages.insert(at, rng.choice(messages))
                case 3 if payload:
                    messages[at] = command, damaged(rng, payload)
                case _ if payload:
                    messages[at] = command, _field_changed(rng, payload)
        data = encoded(messages)
        if rng.random() < 0.25:  # a size that is a lie
            pieces = divided(data)
            at = rng.randrange(len(pieces))
            pieces[at] = pieces[at][:1] + packed(rng, 8) + pieces[at][HEAD.size :]
            data = b"".join(pieces)
        if rng.random() < 0.1:
            data = damaged(rng, data)
        return data

    def run(self, data: bytes) -> None:
        worker = self._started()
        host, port = worker.address.rsplit(":", 1)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 2.0) as peer:
            _talk(peer, data)
        problem = ""
        try:
            greet(worker.address, GREET_S)
        except DotsError as error:
            problem = f"the worker does not answer the next client: {error.message}"
            time.sleep(0.1)
        status = worker.process.poll()
        if status is not None:
            problem = f"the worker has ended with {status}: {self._last_words(worker)}"
        if problem:
            self.close()
            raise WrongResult(problem)

    def close(self) -> None:
        self.running.close()
        self.worker = None

    def _started(self) -> Worker:
        if self.worker is None:
            self.worker = self.running.enter_context(running_worker(data_nbytes=WORKER_NBYTES))
        return self.worker

    @staticmethod
    def _last_words(worker: Worker) -> str:
        assert worker.process.stderr is not None
        return worker.process.stderr.read()[-500:]


def _talk(peer: socket.socket, data: bytes) -> None:
    """Send message by message, and wait for the worker to hang up."""
    for _ in answers(peer, data):
        pass
    peer.shutdown(socket.SHUT_WR)
    peer.settimeout(ANSWER_S)
    while peer.recv(1 << 16):
        pass


def answers(peer: socket.socket, data: bytes) -> Iterator[bytes]:
    """What the worker answers: each message is sent after the answer to the one before."""
    numbers: list[int] = []
    wait_s = START_S
    for piece in divided(data):
        peer.settimeout(2.0)
        peer.sendall(resolved(piece, numbers))
        if len(piece) < HEAD.size or len(piece) - HEAD.size < HEAD.unpack_from(piece)[1]:
            break  # the worker waits for the rest
        if piece[0] in SILENT:
            continue
        peer.settimeout(wait_s)
        try:
            answer = _answer(peer)
        except TimeoutError:
            break
        if piece[0] not in AT_ONCE:
            wait_s = ANSWER_S
        n = NUMBERS.get(piece[0], 0)
        if len(answer) >= 8 * n:
            numbers += struct.unpack_from(f"<{n}Q", answer)
        yield answer


def _answer(peer: socket.socket) -> bytes:
    """The payload of one answer; OSError when the worker hangs up."""
    nbytes = struct.unpack("<Q", _exactly(peer, 8))[0]
    return _exactly(peer, min(nbytes, MAX_ANSWER))


def _exactly(peer: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        part = peer.recv(nbytes - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def _field_changed(rng: Random, payload: bytes) -> bytes:
    """One number is another, at a place where the messages have numbers."""
    if len(payload) < TENSOR.size:
        size = min(len(payload), rng.choice((1, 4, 8)))
        return patched(payload, rng.randrange(len(payload) - size + 1), packed(rng, size))
    start = rng.choice([at for at in (0, 4, 16, 20, len(payload) - TENSOR.size) if at >= 0])
    at = start + rng.choice(
        (0, 8, 12, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 120, 124, 204, 212, 220)
    )
    if rng.random() < 0.3:  # the operation, or the type
        at = start + rng.choice((8, 52))
        return patched(payload, at, struct.pack("<I", rng.randrange(110)))[: len(payload)]
    new = packed(rng, 8 if at - start in (0, 12, 124, 204, 212, 220) else 4)
    if rng.random() < 0.3:
        new = struct.pack("<Q", abs(number(rng)) % 600)[: len(new)]
    return patched(payload, min(at, len(payload) - 8), new)


TARGET = WorkerMessages
