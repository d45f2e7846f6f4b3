"""A child process that may be killed: asked over a pipe, bounded in time, memory and bytes.

For work on input from strangers that can hang, grow or crash inside of C code, where nothing in
this process could stop it. A question goes out and its answer comes back as JSON with a length in
front. While the answer is awaited the child's clock and memory are watched, and whatever ends the
waiting, Ctrl-C included, ends the child too; the next question starts a new one. What the child
does is a module with a `main` (`dotscli.models.child_loop`); this module knows none of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.child_loop import MAX_FRAME, FrameError, packed, unpacked
from dotscli.models.child_pipe import Pipes, pipes_of

# Everything else of the environment stays here: a child needs no tokens and no passwords.
KEPT_VARIABLES = ("TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
START_SECONDS = 60.0  # until its modules are imported, on a machine that is busy
SAMPLE_SECONDS = 0.02  # between two looks at its memory
MAX_REASON = 500  # characters of an error's text, which may quote what the child was given
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:];"
    "from importlib import import_module; import_module(sys.argv[1]).main()"
)


class ChildError(Exception):
    """No answer: `reason` is "start", "died", "time", "memory" or "bytes"; the text says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Child:
    """Starts when it is first needed or told to; safe to use from several threads.

    It lives in a session of its own, where Ctrl-C of the terminal doesn't reach it. When this
    process is gone, it ends at once if it waits, and at the end of its time if it works.
    """

    def __init__(
        self, module: str, nbytes: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            module: its `main` is what the child runs.
            nbytes: most resident memory. It is looked at every 20 ms; the child's own limit
                (`child_loop.serve`) holds between, where the system has one.
            environment: variables beside the few that are passed on.
        """
        self._module = module
        self._nbytes = nbytes
        self._environment = dict(environment or {})
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def start(self) -> None:
        """Starts the child, so that it is ready by the time it is asked. Doesn't wait.

        Raises:
            ChildError: the system starts none.
        """
        with self._lock:
            self._started()

    def ask(self, question: Mapping[str, Any], seconds: float) -> Any:
        """The child's answer; the time until it has started doesn't count.

        Raises:
            DotsError: as the child has raised it, its texts cut to MAX_REASON characters.
            ChildError: it gave no answer. The child is gone.
        """
        frame = packed(question)
        if len(frame) > MAX_FRAME:
            raise ChildError("bytes", f"{len(frame)} bytes, the limit is {MAX_FRAME}")
        with self._lock:
            running = self._started()
            try:
                value = unpacked(running.answer(frame, seconds, self._nbytes))
            except BaseException:
                self._end()
                raise
        return _value(value)

    @property
    def running(self) -> bool:
        """Whether there is a process, so that its state is still there."""
        running = self._running
        return running is not None and running.process.poll() is None

    def stop(self) -> None:
        """Ends the child; harmless when done twice."""
        with self._lock:
            self._end()

    def _started(self) -> _Running:
        if not self.running:
            self._end()
            self._running = _Running(self._module, self._environment)
        assert self._running is not None
        return self._running

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None


class _Running:
    """One process with the pipes to it."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self.ready = False
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self.process = _popen(module, environment, self._said.fileno())
        except (OSError, ValueError) as error:
            self._said.close()
            raise ChildError("start", str(error)) from error
        self._pipes = pipes_of(self.process)
        self.end = weakref.finalize(self, _end, self.process, self._pipes, self._said)

    def answer(self, frame: bytes, seconds: float, nbytes: int) -> bytes:
        """The frame that answers one, unless the child exceeds a limit or dies."""
        try:
            if not self.ready:  # it says when it has started
                self._awaited(START_SECONDS, nbytes)
                self.ready = True
            self._pipes.send(int(seconds * 1000).to_bytes(4, "little") + frame)
            return self._awaited(seconds, nbytes)
        except FrameError as error:
            raise self._died(error) from error

    def _awaited(self, seconds: float, nbytes: int) -> bytes:
        deadline = time.monotonic() + seconds
        while (frame := self._pipes.receive(SAMPLE_SECONDS)) is None:
            if time.monotonic() > deadline:
                raise ChildError("time", f"it takes more than {seconds:g} s")
            if _resident(self.process.pid) > nbytes:
                raise ChildError("memory", f"it needs more than {nbytes >> 20} MiB of memory")
        return frame

    def _died(self, error: FrameError) -> ChildError:
        if error.too_long:
            return ChildError("bytes", str(error))
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return ChildError("died", "its process closed the pipe")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        said = _last_line(self._said.fileno())
        return ChildError("died", f"its process died ({how})" + (f": {said}" if said else ""))


def _popen(module: str, environment: Mapping[str, str], said: int) -> subprocess.Popen[bytes]:
    executable = sys.executable
    flags, session = 0, True
    if sys.platform == "win32":
        # There a venv's python starts another one, whose memory nobody would look at.
        executable = getattr(sys, "_base_executable", "") or executable
        flags, session = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW, False
    if not executable or getattr(sys, "frozen", False):
        raise ValueError("this Python has no interpreter that could be started (sys.executable)")
    passed = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.Popen(
        # -I and -S: what is imported comes from where this process has it, and nothing else runs
        [executable, "-I", "-S", "-c", _BOOT, module, *_search_path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        bufsize=0,
        env={**passed, **environment},
        cwd=None if sys.platform == "win32" else "/",
        start_new_session=session,
        creationflags=flags,
    )


def _search_path() -> Iterable[str]:
    """Where this process imports from, absolute; an editable install may add no folder to it."""
    folders = [
        str(Path(folder).resolve()) for folder in sys.path if folder and Path(folder).exists()
    ]
    package = str(Path(sys.modules["dotscli"].__path__[0]).parent.resolve())
    return folders if package in folders else [*folders, package]


def _end(process: subprocess.Popen[bytes], pipes: Pipes, said: Any) -> None:
    process.kill()
    process.wait()
    pipes.close()
    said.close()


def _value(answer: Any) -> Any:
    if not isinstance(answer, dict) or len(answer) != 1:
        raise ChildError("died", "its process gave no answer")
    ((kind, value),) = answer.items()
    if kind == "value":
        return value
    if kind == "error" and isinstance(value, list) and len(value) == 2:
        message, hint = (_cut(str(part)) for part in value)
        raise DotsError(message, hint)
    raise ChildError("memory" if kind == "memory" else "died", str(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def _resident(pid: int) -> int:
    """Bytes of main memory of a process; 0 if it is gone."""
    import psutil  # a quick answer never gets here

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _last_line(said: int) -> str:
    """What the child said last on stderr."""
    size = os.lseek(said, 0, os.SEEK_END)
    os.lseek(said, max(0, size - 2000), os.SEEK_SET)
    lines = os.read(said, 2000).decode("utf-8", "replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
