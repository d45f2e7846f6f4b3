"""What lies where unfinished work goes: ours is gone on with, anything else is left alone."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotscli.errors import DotsError
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.imatrix.file import ImatrixFile, write_imatrix
from dotscli.quantize.imatrix.sums import Calibration
from dotscli.quantize.output import journal_lines
from tests.test_resume import go_on, interrupt, resumed
from tests.transcript import dots

PRECIOUS = b"a file of mine" * 1000
Document = dict[str, Any]


def test_a_foreign_part_is_not_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    part = out.with_name("o.gguf.part")
    part.write_bytes(PRECIOUS)
    for restart in (False, True):
        with pytest.raises(DotsError, match="is not an unfinished output of dots") as caught:
            go_on(tiny_checkpoint, out, restart=restart, force=True)
        assert part.read_bytes() == PRECIOUS
    command = caught.value.hint.removeprefix("move it away: ")
    subprocess.run(shlex.split(command), check=True)
    go_on(tiny_checkpoint, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "o.gguf.part.old"]
    assert (tmp_path / "o.gguf.part.old").read_bytes() == PRECIOUS


def test_a_part_without_its_journal_is_ours_still(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    interrupt(tiny_checkpoint, out)
    out.with_name("o.gguf.part.journal").unlink()
    assert resumed(go_on(tiny_checkpoint, out)) is None
    interrupt(tiny_checkpoint, out, force=True)
    out.with_name("o.gguf.part").write_bytes(b"")
    go_on(tiny_checkpoint, out, force=True)


def test_one_foreign_part_of_several_stops_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    second = tmp_path / "o-00002-of-00003.gguf.part"
    second.write_bytes(PRECIOUS)
    with pytest.raises(DotsError, match=second.name):
        go_on(tiny_checkpoint, out, split_max_size=1_600_000)
    assert [path.name for path in tmp_path.iterdir()] == [second.name]
    assert second.read_bytes() == PRECIOUS


def test_a_foreign_journal_goes_with_restart_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    journal = out.with_name("o.gguf.part.journal")
    for content in (PRECIOUS, b"\0" * 4096, b"{}\n", b"\n" * 100):
        journal.write_bytes(content)
        with pytest.raises(DotsError, match=r"journal is not a journal of dots") as caught:
            go_on(tiny_checkpoint, out)
        assert caught.value.hint.startswith("use --restart")
        assert journal.read_bytes() == content
        go_on(tiny_checkpoint, out, restart=True, force=True)
        assert not journal.exists()


def replaced(key: str, value: object) -> Callable[[Document], object]:
    def change(document: Document) -> object:
        return document | {key: value}

    return change


# A line of a tensor, changed; its checksum is made anew, so only its content can be judged.
WRONG: dict[str, Callable[[Document], object]] = {
    "no object": lambda document: [document],
    "a number": lambda document: 7,
    "tensor is text": replaced("tensor", "0"),
    "tensor is true": replaced("tensor", True),
    "tensor is a fraction": replaced("tensor", 0.5),
    "tensor is negative": replaced("tensor", -1),
    "tensor is beyond the plan": replaced("tensor", 1 << 70),
    "no tensor": lambda document: {key: document[key] for key in ("from", "sums")},
    "sums is text": replaced("sums", "0123456789abcdef"),
    "sums is empty": replaced("sums", []),
    "a sum is a number": replaced("sums", [1]),
    "a sum is no hexadecimal number": replaced("sums", ["xyz456789abcdef0"]),
    "a sum is signed": replaced("sums", ["-123456789abcdef"]),
    "a sum is too long": replaced("sums", ["0" * 17]),
    "from is a list": replaced("from", []),
    "errors is a number": replaced("errors", 1),
    "an error is a number": replaced("errors", [1.0]),
    "an error is a triple": replaced("errors", [[1.0, 1.0, 1.0]]),
    "an error is text": replaced("errors", [["1", 1.0]]),
    "an error is negative": replaced("errors", [[-1.0, 1.0]]),
    "an error is huge": replaced("errors", [[10**400, 1.0]]),
    "too many errors": replaced("errors", [[1.0, 1.0]] * 2),
    "deeply nested": replaced("errors", None),
}


@pytest.fixture(scope="module")
def unfinished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal and a part, whose run had a few tensors."""
    out = tmp_path_factory.mktemp("unfinished") / "o.gguf"
    interrupt(tiny_checkpoint, out, 5)
    return out


@pytest.mark.parametrize("name", WRONG)
def test_a_line_that_says_what_cannot_be(
    name: str, unfinished: Path, tiny_checkpoint: Path
) -> None:
    """Its checksum is right, so nothing was torn: who wrote it is asked, not guessed."""
    journal = unfinished.with_name("o.gguf.part.journal")
    intact = journal.read_bytes()
    first, *rest = intact.splitlines(keepends=True)
    line = next(line for line in rest if len(json.loads(line[17:])["sums"]) == 1)
    wrong = WRONG[name](json.loads(line[17:]))
    made = journal_lines.line(wrong)  # type: ignore[arg-type]  # that is the point
    if name == "deeply nested":
        text = b'{"errors":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        made = journal_lines._mark(text) + b" " + text + b"\n"
    journal.write_bytes(first + made + b"".join(rest))
    try:
        events = quantize_checkpoint(tiny_checkpoint, unfinished, "q8_0")
        with pytest.raises(DotsError, match=r"o\.gguf\.part\.journal can't be used") as caught:
            next(events)
        assert caught.value.hint.startswith("use --restart")
        started = quantize_checkpoint(tiny_checkpoint, unfinished, "q8_0", restart=True)
        next(started)
        started.close()  # type: ignore[attr-defined]
    finally:
        journal.write_bytes(intact)
        unfinished.with_name("o.gguf.part").touch()


@pytest.mark.parametrize(
    "first", [{}, {"format": "1"}, {"format": 1}, {"format": 1, "identity": []}]
)
def test_a_first_line_of_another_kind_starts_anew(
    first: Document, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    line = journal_lines.line(first)
    out.with_name("o.gguf.part.journal").write_bytes(line)
    if first.get("format") == 1:
        go_on(tiny_checkpoint, out)
    else:
        with pytest.raises(DotsError, match="is not a journal of dots"):
            go_on(tiny_checkpoint, out)
        go_on(tiny_checkpoint, out, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"]


def test_a_journal_without_end_is_read_in_bounds(
    unfinished: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = unfinished.with_name("o.gguf.part.journal")
    intact = journal.read_bytes()
    monkeypatch.setattr(journal_lines, "MAX_LINE", 1 << 16)
    with journal.open("ab") as file:
        file.truncate(1 << 34)  # a hole: one line of 16 GiB
    with journal.open("rb") as file:
        assert len(list(journal_lines.read_lines(file.fileno()))) > 1
    journal.write_bytes(intact)


@pytest.mark.parametrize("force", [False, True])
def test_calibrate_leaves_a_foreign_part_alone(force: bool, tmp_path: Path) -> None:
    """Text, a GGUF, and an importance matrix that isn't an interrupted run's."""
    part = tmp_path / "new.gguf.part"

    def matrix() -> None:
        write_imatrix(part, ImatrixFile({}, ("text.txt",), 3, 256))

    for write in (lambda: part.write_bytes(PRECIOUS), lambda: part.write_bytes(b"GGUF"), matrix):
        write()
        before = part.read_bytes()
        with pytest.raises(DotsError, match="is not from dots calibrate"):
            Calibration(tmp_path / "new.gguf", {"model": "m"}, ("text.txt",), 256, restart=force)
        assert part.read_bytes() == before


def test_a_foreign_new_file_is_not_touched(tiny_gguf: Path, tmp_path: Path) -> None:
    """NAME.new was once written over on the way."""
    text = Path(__file__).parent / "data" / "imatrix" / "text.txt"
    for name in ("out.gguf.new", "out.gguf.part.new"):
        (tmp_path / name).write_bytes(PRECIOUS)
    done = dots("calibrate", tiny_gguf, "-f", text, "-o", tmp_path / "out.gguf", "--chunks", "1")
    assert done.exit_status == 0, done.stderr
    for name in ("out.gguf.new", "out.gguf.part.new"):
        assert (tmp_path / name).read_bytes() == PRECIOUS
