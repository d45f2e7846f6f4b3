"""Weights asked for ahead of a load: all that is read, within the window, ended at once."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from dotscli.engine import read_ahead
from dotscli.engine.read_ahead import ReadAhead
from dotscli.models.gguf_file import GgufFile, read_gguf

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no such call here")


class Asked:
    """What the kernel was asked for, beside asking it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: list[tuple[int, int]] = []
        self.given_back = 0
        self.ends: list[int] = []  # up to where; 0 is all
        advise = os.posix_fadvise

        def seen(fd: int, offset: int, nbytes: int, advice: int) -> None:
            if advice == os.POSIX_FADV_WILLNEED:
                self.pieces.append((offset, nbytes))
            else:
                self.given_back += 1
                self.ends.append(offset + nbytes)
            advise(fd, offset, nbytes, advice)

        monkeypatch.setattr(os, "posix_fadvise", seen)

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.pieces)

    def wait_for(self, nbytes: int) -> None:
        end = time.monotonic() + 30
        while self.nbytes < nbytes and time.monotonic() < end:
            time.sleep(0.001)
        assert self.nbytes >= nbytes


@pytest.fixture(scope="module")
def gguf(tiny_gguf: Path) -> GgufFile:
    return read_gguf(tiny_gguf)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_everything_but_what_is_left_out(gguf: GgufFile, asked: Asked) -> None:
    left_out = {t.name for t in gguf.tensors if "exps" in t.name}
    wanted = [t for t in gguf.tensors if t.name not in left_out]
    assert left_out
    with ReadAhead(gguf, left_out):
        asked.wait_for(sum(t.nbytes for t in wanted))
    assert asked.nbytes == sum(t.nbytes for t in wanted)
    assert asked.pieces == sorted(asked.pieces)
    assert asked.given_back == 1


def test_no_further_ahead_than_the_window(
    gguf: GgufFile, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(t.nbytes for t in gguf.tensors)
    monkeypatch.setattr(read_ahead, "PIECE", 1024)
    monkeypatch.setattr(read_ahead, "WINDOW", total // 4)
    with ReadAhead(gguf, ()) as ahead:
        for read in (0, total // 2):
            ahead.reached(read)
            asked.wait_for(read + total // 4)
            time.sleep(0.05)
            assert asked.nbytes <= read + total // 4 + 2048
        ahead.reached(total)
        asked.wait_for(total)


def test_a_load_that_ends_early_ends_it_at_once(
    gguf: GgufFile, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "WINDOW", 0)
    monkeypatch.setattr(read_ahead, "PIECE", 64)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ReadAhead(gguf, ()):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 5
    assert asked.nbytes < sum(t.nbytes for t in gguf.tensors)
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_progress_and_the_end_take_no_lock_made_in_python(gguf: GgufFile) -> None:
    """As in tests/test_threads.py: Ctrl-C could leave it taken, and the load wait for ever."""
    names = set()

    def trace(frame: object, event: str, _: object) -> None:
        if event == "call":
            names.add(frame.f_code.co_name)  # type: ignore[attr-defined]

    with ReadAhead(gguf, ()) as ahead:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            ahead.reached(1)
        finally:
            sys.settrace(before)
    assert names == {"reached"}


def test_what_was_read_leaves_the_page_cache_while_the_load_goes_on(
    gguf: GgufFile, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(t.nbytes for t in gguf.tensors)
    monkeypatch.setattr(read_ahead, "PIECE", 1024)
    monkeypatch.setattr(read_ahead, "BEHIND", total // 20)
    with ReadAhead(gguf, ()) as ahead:
        ahead.reached(total // 2)
        end = time.monotonic() + 30
        while not asked.ends and time.monotonic() < end:
            time.sleep(0.001)
        [dropped] = asked.ends
        first = asked.pieces[0][0]
        assert 0.4 * total < dropped - first < 0.5 * total
    assert asked.ends[1:] == [0]  # to its end
