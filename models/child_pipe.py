"""The pipes to a child: a question goes out, its answer comes in, and nobody waits for long.

Where pipes can be waited for with a timeout, this thread does all of it: a question costs two
switches between processes. Windows can't; there a thread of its own blocks on them.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from typing import Protocol

from dotscli.models.child_loop import FrameError, frame_length, read_frame

PART = 1 << 16


class Pipes(Protocol):
    """One question at a time."""

    def send(self, data: bytes) -> None:
        """Hands over a question; it leaves while the answer is awaited."""

    def receive(self, seconds: float) -> bytes | None:
        """The next frame, or None if it isn't there after so many seconds.

        Raises:
            FrameError: the child is gone, or its answer is too long.
        """

    def close(self) -> None:
        """After the end of the child."""


def pipes_of(process: subprocess.Popen[bytes]) -> Pipes:
    """The way to talk to a process that has pipes as stdin and stdout."""
    return ThreadedPipes(process) if sys.platform == "win32" else PolledPipes(process)


class PolledPipes:
    """Pipes that never block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._files = process.stdin, process.stdout
        self._to, self._from = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._left = memoryview(b"")
        self._got = bytearray()

    def send(self, data: bytes) -> None:
        self._left = memoryview(data)
        self._write()

    def receive(self, seconds: float) -> bytes | None:
        import select

        deadline = time.monotonic() + seconds
        while (frame := self._frame()) is None:
            wanted = select.poll()
            wanted.register(self._from, select.POLLIN)
            if self._left:
                wanted.register(self._to, select.POLLOUT)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for descriptor, _ in wanted.poll(left * 1000):
                if descriptor == self._to:
                    self._write()
                else:
                    self._read()
        return frame

    def _write(self) -> None:
        try:
            while self._left:
                self._left = self._left[os.write(self._to, self._left) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise FrameError(str(error)) from error

    def _read(self) -> None:
        part = os.read(self._from, PART)
        if not part:
            raise FrameError("the pipe was closed")
        self._got += part

    def _frame(self) -> bytes | None:
        if len(self._got) < 4:
            return None
        end = 4 + frame_length(self._got[:4])
        if len(self._got) < end:
            return None
        frame = bytes(self._got[4:end])
        del self._got[:end]
        return frame

    def close(self) -> None:
        for file in self._files:
            file.close()


class ThreadedPipes:
    """Pipes with a thread that blocks on them; whoever waits for it can be interrupted."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | FrameError] = queue.SimpleQueue()
        arguments = (process, self._questions, self._answers)
        threading.Thread(target=_exchange, args=arguments, daemon=True).start()

    def send(self, data: bytes) -> None:
        self._questions.put(data)

    def receive(self, seconds: float) -> bytes | None:
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(answer, FrameError):
            raise answer
        return answer

    def close(self) -> None:
        self._questions.put(None)


def _exchange(
    process: subprocess.Popen[bytes],
    questions: queue.SimpleQueue[bytes | None],
    answers: queue.SimpleQueue[bytes | FrameError],
) -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        with process.stdin as out, process.stdout as into:
            answers.put(read_frame(into.fileno()))  # says that it has started
            while (question := questions.get()) is not None:
                data = memoryview(question)
                while data:
                    data = data[os.write(out.fileno(), data) :]
                answers.put(read_frame(into.fileno()))
    except FrameError as error:
        answers.put(error)
    except OSError as error:
        answers.put(FrameError(str(error)))
