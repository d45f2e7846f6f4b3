"""Files that are cut while they are read: one line, exit status 1, and the work is kept.

Mapped, they would end the process by SIGBUS.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.against import compare
from dotscli.quantize.convert import Event, TensorDone
from dotscli.quantize.imatrix.importance import load_importance
from dotscli.quantize.source import opened
from dotscli.quantize.source.opened import OpenFiles
from dotscli.quantize.verify import verify
from tests import tiny
from tests.test_resume import go_on, resumed
from tests.transcript import dots

DATA = Path(__file__).parent / "data" / "imatrix"
UP = "blk.1.ffn_up_exps.weight"


def n_open() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def cut_on_the_way(source: Path, out: Path, cut: Path) -> list[Event]:
    """Quantize, and cut a file of the source when twenty tensors are done."""
    events: list[Event] = []
    for event in quantize_checkpoint(source, out, "q8_0", threads=1):
        events.append(event)
        if sum(isinstance(event, TensorDone) for event in events) == 20:
            os.truncate(cut, cut.stat().st_size // 3)
    return events


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_source_that_is_cut_during_the_pass(kind: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "six", n_layers=6, n_shards=1)
    source, cut = folder, folder / "model.safetensors"
    if kind == "gguf":
        source = cut = tmp_path / "six.gguf"
        list(quantize_checkpoint(folder, source, "bf16"))
    out = tmp_path / "o.gguf"
    whole, changed = cut.read_bytes(), cut.stat()
    with pytest.raises(DotsError, match=f"{cut} shrank while it was being read"):
        cut_on_the_way(source, out, cut)
    assert out.with_name("o.gguf.part.journal").exists()
    done = dots("quantize", source, "-o", out, "--type", "q8_0")
    assert done.exit_status == 1
    assert str(cut) in done.stderr
    cut.write_bytes(whole)
    os.utime(cut, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    found = resumed(go_on(source, out))
    assert found is not None
    assert found.n_tensors >= 20


def test_a_file_that_is_cut_while_it_is_verified(
    tiny_gguf: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path))
    for events in (verify(path, threads=1), compare(path, tiny_checkpoint, threads=1)):
        next(events)
        os.truncate(path, 1 << 16)
        with pytest.raises(DotsError, match=str(path)):
            list(events)
        shutil.copy(tiny_gguf, path)


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_MAX_OPEN", 2)
    files = OpenFiles()
    paths = [tmp_path / str(number) for number in range(5)]
    before = n_open()
    for path in paths:
        path.write_text(f"file {path.name}")
    for _ in range(2):
        for path in paths:
            assert files.read(path, 5, 1).tobytes().decode() == path.name
    assert n_open() == before + 2
    files.close()
    assert n_open() == before
    paths[4].unlink()
    with pytest.raises(DotsError, match="can't be read at byte 0: No such file"):
        files.read(paths[4], 0, 1)


def test_an_importance_matrix_that_is_cut_after_it_was_read(tmp_path: Path) -> None:
    """Its values are used row by row, long after they were checked."""
    for name in ("small.imatrix.gguf", "small.imatrix.dat"):
        path = Path(shutil.copy(DATA / name, tmp_path))
        matrix = load_importance(path)
        before = matrix.row(UP, 7)
        os.truncate(path, 0)
        assert before is not None
        assert (matrix.row(UP, 7) == before).all()


def test_a_matrix_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    for name in ("small.imatrix.gguf", "small.imatrix.dat"):
        path = Path(shutil.copy(DATA / name, tmp_path))
        os.truncate(path, 1 << 40)
        with pytest.raises(DotsError, match="too many for an importance matrix"):
            load_importance(path)
