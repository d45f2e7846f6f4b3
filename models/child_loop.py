"""The child's side of `dotscli.models.child`: questions from stdin, answers to stdout, limits.

Frames are a length of four bytes and that many bytes of JSON; before a question's frame come four
bytes with its milliseconds. The limits that the process gives itself hold also when nobody looks:
an alarm ends it when the time of a question is over, memory and the size of files are bounded
where the system has such bounds (memory on Linux only), and Ctrl-C is left to the parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dotscli.errors import DotsError

MAX_FRAME = 64 * 1024**2  # bytes, either way
MAX_FILE_NBYTES = 4 * 1024**2  # of what is written to stderr
GRACE_SECONDS = 1.0  # the parent, which can say why, comes first


class FrameError(Exception):
    """The other end is gone, or sends a frame longer than anything it may send."""

    def __init__(self, text: str, *, too_long: bool = False) -> None:
        super().__init__(text)
        self.too_long = too_long


def packed(value: Mapping[str, Any]) -> bytes:
    """A frame. Lone surrogates go through: a user's text may have some."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(4, "little") + data


def unpacked(data: bytes) -> Any:
    """The value of a frame, without its length; None for what is no JSON."""
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def read_frame(source: int) -> bytes:
    """The next frame of a file descriptor, without its length.

    Raises:
        FrameError: the end, or a length above MAX_FRAME.
    """
    return _take(source, frame_length(_take(source, 4)))


def frame_length(data: bytes | bytearray) -> int:
    """What the four bytes before a frame say.

    Raises:
        FrameError: more than MAX_FRAME.
    """
    length = int.from_bytes(data, "little")
    if length > MAX_FRAME:
        raise FrameError(f"an answer of {length} bytes, at most {MAX_FRAME} work", too_long=True)
    return length


def _take(source: int, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        part = os.read(source, min(nbytes - len(data), 1 << 20))
        if not part:
            raise FrameError("the pipe was closed")
        data += part
    return bytes(data)


def serve(answer: Callable[[Any], Any], nbytes: int, *, opens_files: bool) -> NoReturn:
    """Answers questions until stdin ends, which it does when the parent is gone.

    Args:
        answer: from a question to a JSON value; a DotsError goes to the parent as one.
        nbytes: most memory beyond what the process has now, where the system can bound it.
        opens_files: False for a process that has imported all it needs: it can open no file and
            no socket from then on, and write none.
    """
    with suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.dup(1)
    os.dup2(2, 1)  # what C code prints must not become part of an answer
    _limit(nbytes, opens_files)
    _write(sink, packed({"value": None}))
    while True:
        try:
            seconds = int.from_bytes(_take(0, 4), "little") / 1000
            question = unpacked(read_frame(0))
        except FrameError:
            os._exit(0)
        with _Alarm(seconds + GRACE_SECONDS):
            reply, usable = _reply(answer, question)
        _write(sink, reply)
        if not usable:
            os._exit(1)


def _reply(answer: Callable[[Any], Any], question: Any) -> tuple[bytes, bool]:
    """A frame, and whether the process can go on."""
    try:
        return packed({"value": answer(question)}), True
    except DotsError as error:
        return packed({"error": [error.message, error.hint]}), True
    except MemoryError:
        return packed({"memory": "it needs more memory than it may have"}), False
    except Exception as error:  # whatever strangers have found: one line instead of a traceback
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return packed({"failed": text[:200]}), False


def _write(sink: int, frame: bytes) -> None:
    data = memoryview(frame)
    try:
        while data:
            data = data[os.write(sink, data) :]
    except OSError:
        os._exit(0)


class _Alarm:
    """Ends the process after so many seconds, also in the middle of C code."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, self._seconds)  # SIGALRM: the default, the end
        else:
            import faulthandler

            faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    def __exit__(self, *_: object) -> None:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            import faulthandler

            faulthandler.cancel_dump_traceback_later()


def _limit(nbytes: int, opens_files: bool) -> None:
    if sys.platform == "win32":
        return
    import resource

    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, MAX_FILE_NBYTES)]
    if not opens_files:
        limits += [(resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_FSIZE, 0)]
    if sys.platform == "linux":  # elsewhere what malloc maps isn't counted
        limits.append((resource.RLIMIT_DATA, _data_nbytes() + nbytes))
    for which, value in limits:
        with suppress(ValueError, OSError):  # somebody has set a lower one
            resource.setrlimit(which, (value, value))


def _data_nbytes() -> int:
    """Bytes that count against RLIMIT_DATA now: 0 where /proc isn't there."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
        return pages * os.sysconf("SC_PAGESIZE")
    return 0
