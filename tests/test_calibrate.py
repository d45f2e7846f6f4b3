"""`dots calibrate`: the sums that llama-imatrix collects, for every expert, interrupted or not.

tests/data/imatrix holds what llama-imatrix (llama.cpp of llama-cpp-python 0.3.36) has written for
the model of `small_gguf`, with -f text.txt -c 256 -b 256 --chunks 4, in both of its forms.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dotscli.engine import Engine
from dotscli.engine.collect_sums import dense_sums, expert_sums
from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.imatrix import sums as calibration
from dotscli.quantize.imatrix.file import ImatrixFile, read_imatrix
from dotscli.quantize.imatrix.importance import load_importance
from tests import gguf_maker, tiny
from tests.transcript import Transcript, command, dots, environment

DATA = Path(__file__).parent / "data" / "imatrix"
THEIRS, LEGACY, TEXT = (DATA / n for n in ("small.imatrix.gguf", "small.imatrix.dat", "text.txt"))
SMALL = {
    "n_layers": 2, "hidden": 64, "n_ff": 96, "n_ff_expert": 32, "n_experts": 8,
    "n_experts_used": 2, "n_shared_experts": 1,
}  # fmt: skip
UP = "blk.1.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    checkpoint = tiny.write_checkpoint(folder / "small", **SMALL)  # type: ignore[arg-type]
    for _ in quantize_checkpoint(checkpoint, folder / "small.gguf", "f32"):
        pass
    return folder / "small.gguf"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the text."""
    shutil.copy(TEXT, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calibrate(model: Path, *options: str, out: str = "out.gguf") -> Transcript:
    return dots("calibrate", model, "-f", "text.txt", "-o", out, "-c", "256", *options)


def assert_equal(ours: ImatrixFile, theirs: ImatrixFile) -> None:
    """Counts are the same, sums are but for the order in which float32 was added."""
    assert ours.entries.keys() == theirs.entries.keys()
    for name, entry in theirs.entries.items():
        assert (ours.entries[name].counts == entry.counts).all(), name
        np.testing.assert_allclose(ours.entries[name].sums, entry.sums, rtol=1e-4, atol=1e-6)


def test_sums_and_counts_are_those_of_llama_imatrix(small_gguf: Path, here: Path) -> None:
    done = calibrate(small_gguf, "--chunks", "4")
    assert done.exit_status == 0, done.stderr
    ours, theirs = read_imatrix(here / "out.gguf"), read_imatrix(THEIRS)
    assert_equal(ours, theirs)
    assert (ours.datasets, ours.n_chunks, ours.chunk_size) == (("text.txt",), 4, 256)
    assert len(ours.entries) == 2 * 4 + 3 + 7
    # Keys, names, order, shapes and places too: only the sums may differ in their last bits.
    written, expected = (here / "out.gguf").read_bytes(), THEIRS.read_bytes()
    assert len(written) == len(expected)
    header = read_gguf(THEIRS).data_offset
    assert written[:header] == expected[:header]


def test_coverage_says_which_experts_were_thin(small_gguf: Path, here: Path) -> None:
    done = calibrate(small_gguf, "--chunks", "4", "--json")
    value = done.json
    assert (value["chunks"], value["tokens"], value["entries"]) == (4, 1024, 18)
    (layer,) = value["layers"]
    counts = read_imatrix(THEIRS).entries[UP].counts
    assert counts.sum() == 2 * 1024
    assert layer == {
        "layer": 1, "n_experts": 8, "seen": int((counts > 0).sum()), "least": 0,
        "median": int(np.median(counts)), "thin": np.flatnonzero(counts < 256).tolist(),
    }  # fmt: skip
    done = calibrate(small_gguf, "--chunks", "4", "--force")
    assert done.stdout == "out.gguf\n"
    table = [line.split() for line in done.stderr.splitlines()]
    first = table.index(["layer", "experts", "seen", "min", "tokens", "median", "thin"])
    assert table[first + 1][:4] == ["1", "8", str(layer["seen"]), "0"]


def test_the_file_serves_to_quantize(small_gguf: Path, here: Path) -> None:
    calibrate(small_gguf)
    done = dots("quantize", small_gguf.parent / "small", "-o", "q.gguf", "--imatrix", "out.gguf")
    assert done.exit_status == 0, done.stderr
    assert "saw fewer than 256 tokens" in done.stderr


def test_a_dry_run_says_how_much_and_writes_nothing(small_gguf: Path, here: Path) -> None:
    value = calibrate(small_gguf, "--dry-run", "--json").json
    tokens = value["tokens"]
    assert value == {
        "output": "out.gguf", "tokens": tokens, "chunk_size": 256, "chunks": tokens // 256,
        "entries": 18, "bytes": sum(
            4 * (entry.sums.size + entry.counts.size)
            for entry in read_imatrix(THEIRS).entries.values()
        ),
    }  # fmt: skip
    assert f"{tokens} tokens: 9 chunks" in calibrate(small_gguf, "--dry-run").stdout
    assert sorted(path.name for path in here.iterdir()) == ["text.txt"]
    (here / "out.gguf").write_text("of an earlier run")  # nothing is written, so it may be there
    assert calibrate(small_gguf, "--dry-run").exit_status == 0


def test_two_texts_are_read_one_after_the_other(small_gguf: Path, here: Path) -> None:
    text = TEXT.read_text()
    (here / "a.txt").write_text(text[:1500])
    (here / "b.txt").write_text(text[1500:])
    dots("calibrate", small_gguf, "-f", "a.txt", "-f", "b.txt", "-o", "two.gguf", "-c", "256")
    two = read_imatrix(here / "two.gguf")
    assert two.datasets == ("a.txt", "b.txt")
    calibrate(small_gguf, "--chunks", str(two.n_chunks))
    assert two.entries[UP].counts.sum() == read_imatrix(here / "out.gguf").entries[UP].counts.sum()


@pytest.mark.parametrize("chunks", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    chunks: int, small_gguf: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was to read less: every chunk it has read counts."""
    calibrate(small_gguf, out="whole.gguf")
    collect = Engine.collect
    calls = []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > chunks:
            raise KeyboardInterrupt
        return collect(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "collect", interrupted)
    done = calibrate(small_gguf, "--chunks", "5")
    assert done.exit_status == 130
    assert f"{chunks} chunks are kept in out.gguf.part" in done.stderr
    assert not (here / "out.gguf").exists()
    monkeypatch.setattr(Engine, "collect", collect)
    done = calibrate(small_gguf)
    assert f"resuming: {chunks} of 9 chunks are done" in done.stderr
    assert (here / "out.gguf").read_bytes() == (here / "whole.gguf").read_bytes()
    assert not (here / "out.gguf.part").exists()


def test_killed_at_any_moment_the_work_goes_on(small_gguf: Path, here: Path) -> None:
    """SIGKILL leaves no time to save: what the periodic saves have kept must do."""
    (here / "text.txt").write_text(TEXT.read_text() * 20)
    calibrate(small_gguf, out="whole.gguf")
    script = "from dotscli.quantize.imatrix import sums as c; c.SAVE_S = c.SAVE_SHARE = 0.0; "
    script += "from dotscli.__main__ import main; main()"
    words = ["calibrate", str(small_gguf), "-f", "text.txt", "-o", "out.gguf", "-c", "256"]
    rng = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen(
            [command()[0], "-c", script, *words], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        part, end = here / "out.gguf.part", time.monotonic() + 30
        while not part.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.wait()
    calibrate(small_gguf)
    assert (here / "out.gguf").read_bytes() == (here / "whole.gguf").read_bytes()
    assert not list(here.glob("*.part"))


def test_ctrl_c_within_a_chunk_keeps_the_chunks_before(small_gguf: Path, here: Path) -> None:
    (here / "text.txt").write_text(TEXT.read_text() * 200)
    words = ["calibrate", small_gguf, "-f", "text.txt", "-o", "out.gguf", "-c", "256"]
    process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    end = time.monotonic() + 60
    while not process.stderr.read() and time.monotonic() < end:  # the first line of progress
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert read_imatrix(here / "out.gguf.part").n_chunks > 0


@pytest.mark.parametrize("what", ["model", "texts", "context"])
def test_changed_input_is_noticed(what: str, small_gguf: Path, here: Path) -> None:
    calibrate(small_gguf, "--chunks", "2")
    ours = read_imatrix(here / "out.gguf")
    made_of = calibration.identity(small_gguf, [1, 2, 3], 256)
    part = calibration.Calibration(here / "new.gguf", made_of, ("text.txt",), 256)
    part.add([])
    part.save()
    assert calibration.Calibration(here / "new.gguf", made_of, ("text.txt",), 256).n_chunks == 1
    changed = made_of | {what: "other"}
    with pytest.raises(DotsError, match=f"1 chunks of an interrupted run; changed since: {what}"):
        calibration.Calibration(here / "new.gguf", changed, ("text.txt",), 256)
    done = calibrate(small_gguf, out="new.gguf")
    assert done.exit_status == 1
    assert "changed since: texts" in done.stderr
    assert calibrate(small_gguf, "--chunks", "2", "--force", out="new.gguf").exit_status == 0
    assert_equal(read_imatrix(here / "new.gguf"), ours)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("-c", "8"), 2, "greater than or equal to 16"),
        (("--chunks", "0"), 2, "--chunks is 0"),
        (("-o", "nowhere/out.gguf"), 1, "nowhere is not a folder"),
        (("-o", "text.txt"), 1, "text.txt already exists"),
        (("-o", "text.txt", "--force"), 1, "is also an input"),
        (("-f", "missing.txt"), 1, "missing.txt can't be read"),
        (("-c", "32768"), 1, "one chunk takes 32768"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    options: tuple[str, ...], status: int, message: str, small_gguf: Path, here: Path
) -> None:
    done = calibrate(small_gguf, *options)
    assert done.exit_status == status
    assert message in done.stderr
    assert (here / "text.txt").read_text() == TEXT.read_text()


def test_without_a_text_it_is_a_usage_error(small_gguf: Path) -> None:
    done = dots("calibrate", small_gguf)
    assert done.exit_status == 2
    assert "no text to calibrate on" in done.stderr


def test_an_existing_file_is_not_replaced(small_gguf: Path, here: Path) -> None:
    (here / "out.gguf").write_text("mine")
    done = calibrate(small_gguf)
    assert done.exit_status == 1
    assert "--force" in done.stderr
    assert (here / "out.gguf").read_text() == "mine"


def test_expert_sums_are_those_of_a_loop_over_rows() -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(7)[:3] for _ in range(40)]).astype(np.int32)
    ids[ids == 5] = 6  # an expert that nobody chooses
    for n_slots in (1, 3):
        rows = rng.standard_normal((40, n_slots, 24), dtype=np.float32)
        sums, counts = expert_sums(rows, ids, 7)
        expected = np.zeros((7, 24))
        for token in range(40):
            for slot in range(3):
                expected[ids[token, slot]] += rows[token, slot % n_slots].astype(np.float64) ** 2
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
        assert counts.tolist() == [int((ids == expert).sum()) for expert in range(7)]
        assert not sums[5].any()
    flat, count = dense_sums(rows)
    np.testing.assert_allclose(flat[0], (rows.astype(np.float64) ** 2).sum((0, 1)), rtol=1e-5)
    assert count.tolist() == [120]


def test_the_legacy_form_gives_the_same_rows() -> None:
    legacy, current = load_importance(LEGACY), load_importance(THEIRS, thin_tokens=0)
    assert legacy.entries.keys() == current.entries.keys()
    assert (legacy.n_chunks, legacy.datasets) == (4, ("text.txt",))
    for name, entry in current.entries.items():
        assert legacy.entries[name].sums.shape == entry.sums.shape
        assert not legacy.thin(name).size  # it doesn't count tokens
        for expert in range(len(entry.counts)):
            ours, theirs = legacy.row(name, expert), current.row(name, expert)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [LEGACY, THEIRS], ids=["dat", "gguf"])
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(
    source: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Cut off, overwritten, or with another number in some place: never anything but DotsError."""
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 4))
        raw[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    path = tmp_path / "damaged"
    path.write_bytes(raw)
    try:
        matrix = load_importance(path)
    except DotsError:
        return
    for name, entry in matrix.entries.items():
        row = matrix.row(name, len(entry.counts) - 1)
        assert row is not None
        assert row.any()


@pytest.mark.parametrize("content", [b"", b"text that is no matrix\n", b"\x01\0\0\0", b"GGUF"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(DotsError):
        read_imatrix(path)


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """A damaged weight must not become an importance matrix, nor leave anything behind."""
    made = gguf_maker.dots1()
    shape, kind, data = made.tensors["blk.0.attn_output.weight"]
    made.tensors["blk.0.attn_output.weight"] = (shape, kind, b"\xff" * len(data))
    model = made.write(tmp_path / "nan.gguf")
    (tmp_path / "text.txt").write_bytes(TEXT.read_bytes())
    out = tmp_path / "out.gguf"
    done = dots("calibrate", model, "-f", tmp_path / "text.txt", "-o", out, "-c", "64")
    assert done.exit_status == 1
    assert "the input of blk.0.ffn_" in done.stderr
    assert "is not finite" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.gguf", "text.txt"]
