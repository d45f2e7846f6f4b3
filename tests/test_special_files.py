"""Outputs replace regular files only, and inputs that are no files are refused or waited for."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.hot.heat import Heat
from dotscli.hot.heat_store import save
from dotscli.models.gguf_file import read_gguf
from dotscli.models.json_file import read_object
from dotscli.models.regular_file import check_replaceable
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.imatrix.file import read_imatrix
from dotscli.quantize.source.safetensors_header import read_header
from dotscli.terminal import reading
from tests.transcript import dots

DATA = Path(__file__).parent / "data" / "imatrix"


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        path.symlink_to("/dev/null")


def bound(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "a device": device,
    "a FIFO": os.mkfifo,
    "a socket": bound,
    "a folder": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture(params=KINDS)
def special(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Something that is no file, under a name that any output could have, and what it is."""
    path = tmp_path / "out.svg"
    KINDS[request.param](path)
    return path, request.param


def test_quantize_leaves_what_is_no_file_alone(
    special: tuple[Path, str], tiny_checkpoint: Path
) -> None:
    path, kind = special
    before = path.lstat()
    for out, report in ((path, None), (path.with_name("o.gguf"), path)):
        events = quantize_checkpoint(tiny_checkpoint, out, "q4_0", force=True, report=report)
        with pytest.raises(DotsError) as caught:
            next(events)
        assert caught.value.message.startswith(f"{path} is {kind}")
    assert os.path.samestat(path.lstat(), before)
    assert list(path.parent.iterdir()) == [path]


def test_the_names_of_unfinished_work_are_no_exception(
    special: tuple[Path, str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path, kind = special
    for suffix in (".part", ".part.journal"):
        there = path.rename(tmp_path / f"o.gguf{suffix}")
        with pytest.raises(DotsError, match=f"{suffix} is {kind}"):
            next(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", "q4_0"))
        path = there


def test_calibrate_leaves_it_alone(
    special: tuple[Path, str], tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kind = special
    text = path.with_name("text.txt")
    shutil.copy(DATA / "text.txt", text)
    done = dots("calibrate", tiny_gguf, "-f", text, "-o", path, "-c", "64", "--force")
    assert done.exit_status == 1
    assert f"{path} is {kind}" in done.stderr
    assert sorted(path.parent.iterdir()) == [path, text]


def test_so_do_plots_and_heat(special: tuple[Path, str]) -> None:
    path, kind = special
    matrix = DATA / "small.imatrix.gguf"
    done = dots("inspect", matrix, "--experts", "--plot", path, "--force")
    assert done.exit_status == 1
    assert f"{path} is {kind}" in done.stderr
    with pytest.raises(DotsError, match=kind):
        save(Heat(), path)
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_a_file_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "new"):
        check_replaceable(tmp_path / name)


def test_inputs_that_are_no_files_are_refused_before_they_are_opened(
    special: tuple[Path, str],
) -> None:
    """A FIFO that nobody writes to would wait for ever."""
    path, kind = special
    for read in (read_gguf, read_object, read_header, read_imatrix):
        with pytest.raises(DotsError, match=f"{path} is {kind}, not a file"):
            read(path)


def test_a_text_may_come_from_a_pipe(tiny_gguf: Path, tmp_path: Path) -> None:
    """`-f <(command)`; where nobody writes, it is said what is waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = (DATA / "text.txt").read_bytes()

    def write_late() -> None:
        waited.wait(30)
        pipe.write_bytes(text)

    waited, said = threading.Event(), []

    def note(line: str) -> None:
        said.append(line)
        waited.set()

    writer = threading.Thread(target=write_late)
    writer.start()
    assert reading.read_named(pipe, note) == text
    writer.join()
    assert said == [f"waiting for someone to write to {pipe}"]


def test_a_text_has_a_size_limit(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/zero was read until there was no memory left."""
    monkeypatch.setattr(reading, "MAX_TEXT_NBYTES", 1 << 20)
    done = dots("calibrate", tiny_gguf, "-f", "/dev/zero", "-o", tmp_path / "o.gguf")
    assert done.exit_status == 1
    assert "/dev/zero is longer than 1 MiB" in done.stderr
    (tmp_path / "text.txt").write_text("x" * ((1 << 20) + 1))
    for words in (("prompt", "-m", tiny_gguf, "-f"), ("calibrate", tiny_gguf, "-f")):
        done = dots(*words, tmp_path / "text.txt")
        assert (done.exit_status, done.stdout) == (1, "")
        assert "text.txt is longer than 1 MiB" in done.stderr


def test_texts_have_a_limit_together(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dotscli.commands.calibrate.MAX_TEXT_NBYTES", 1 << 20)
    (tmp_path / "text.txt").write_text("hello " * 100_000)
    texts = ("-f", tmp_path / "text.txt") * 2
    done = dots("calibrate", tiny_gguf, *texts, "-o", tmp_path / "o.gguf", "--dry-run")
    assert done.exit_status == 1
    assert "all the text together is longer than" in done.stderr
