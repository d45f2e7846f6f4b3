"""Interrupted is not lost: whatever ends a run, the same command goes on from the last finished
tensor, and the file is the same as without the interruption, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.convert import Event, Finished, Progress, Resumed, Started, TensorDone
from dotscli.quantize.output import journal
from dotscli.quantize.output.part_file import PartFile
from tests import tiny
from tests.transcript import dots

N_KILLS = 20

# Prints as soon as work may be lost, and takes a fixed time over every job.
SCRIPT = """
    import contextlib, signal, sys, time
    from pathlib import Path
    from dotscli.quantize import quantize_checkpoint
    from dotscli.quantize.encoder import Encoder
    from dotscli.quantize.output import journal

    def stop(number, frame):
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop)
    encode = Encoder.encode

    def slowly(self, job):
        time.sleep(float(sys.argv[3]))
        return encode(self, job)

    Encoder.encode = slowly
    journal.SYNC_S = journal.MAX_SYNC_S = 0.0
    events = quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), "q8_0", threads=2)
    with contextlib.closing(events):
        for event in events:
            print(event, flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("resume") / "six", n_layers=6)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> bytes:
    """The file that every run has to end with."""
    out = checkpoint.parent / "whole.gguf"
    list(quantize_checkpoint(checkpoint, out, "q8_0"))
    return out.read_bytes()


def command(checkpoint: Path, out: Path, pause: float = 0.0) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(SCRIPT), str(checkpoint), str(out), str(pause)]


def interrupt(checkpoint: Path, out: Path, n_tensors: int = 20, **options: object) -> None:
    """Leave a run that has finished so many tensors."""
    events = quantize_checkpoint(checkpoint, out, **({"type": "q8_0"} | options))  # type: ignore[arg-type]
    done = 0
    for event in events:
        done += isinstance(event, TensorDone)
        if done == n_tensors:
            break
    events.close()  # type: ignore[attr-defined]


def go_on(checkpoint: Path, out: Path, **options: object) -> list[Event]:
    return list(quantize_checkpoint(checkpoint, out, **({"type": "q8_0"} | options)))  # type: ignore[arg-type]


def resumed(events: list[Event]) -> Resumed | None:
    return next((event for event in events if isinstance(event, Resumed)), None)


def warnings(events: list[Event]) -> str:
    assert isinstance(events[0], Started)
    return "\n".join(events[0].warnings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_random_moments(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    """One output, killed again and again until it is there, and then the next one."""
    rng = random.Random(0)
    out = tmp_path / "o.gguf"
    killed = went_on = 0
    while killed < N_KILLS or names(tmp_path) != ["o.gguf"]:
        if names(tmp_path) == ["o.gguf"]:  # with a journal beside it, the command ends its work
            assert out.read_bytes() == whole
            out.unlink()
        with subprocess.Popen(
            command(checkpoint, out, 0.002), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Started(")
            time.sleep(rng.uniform(0, 0.25))
            process.kill()
            went_on += "Resumed(" in process.stdout.read()
        killed += process.returncode == -signal.SIGKILL
    assert out.read_bytes() == whole
    assert went_on >= N_KILLS // 2


class Killed(BaseException):
    """Stands for a kill: from a certain call on, no call that changes the disk comes through."""


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("with_report", [False, True])
def test_killed_at_every_one_of_the_last_steps(
    with_report: bool,
    n_files: int,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Headers, syncs, names, report: the run dies before the first of them, the second ..."""
    out = tmp_path / "here" / "o.gguf"
    options = {
        "split_max_size": None if n_files == 1 else 1_600_000,
        "report": out.with_name("r.json") if with_report else None,
    }
    n_files += with_report
    left = [0]

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return function(*args, **options)

        return call

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.parent.iterdir()}

    out.parent.mkdir()
    go_on(tiny_checkpoint, out, **options)
    expected = files()
    assert len(expected) == n_files
    steps = 0
    while left[0] <= 0:
        for path in out.parent.iterdir():
            path.unlink()
        interrupt(tiny_checkpoint, out, 45, **options)
        events = quantize_checkpoint(tiny_checkpoint, out, "q8_0", **options)
        while getattr(next(events), "name", "") != "output.weight":
            pass
        left[0] = steps
        with monkeypatch.context() as patch:
            for name in ("fdatasync", "fsync", "pwrite"):
                patch.setattr(os, name, dying(getattr(os, name)))
            for name in ("replace", "unlink"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            with contextlib.suppress(Killed):
                list(events)
        if len(files()) != n_files or any(".part" in name for name in files()):
            go_on(tiny_checkpoint, out, **options)
        assert files() == expected, steps
        steps += 1
    assert steps > 10


@pytest.mark.parametrize("threads", [1, 3])
def test_finished_tensors_are_not_made_again(
    threads: int, checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out, 50, threads=2)
    assert names(tmp_path) == ["o.gguf.part", "o.gguf.part.journal"]
    assert not out.with_name("o.gguf.part").read_bytes().startswith(b"GGUF")
    events = go_on(checkpoint, out, threads=threads, max_memory=257 << 20)
    found = resumed(events)
    assert found is not None
    assert (found.n_tensors, found.n_damaged) == (50, 0)
    progress = [event.done_nbytes for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert found.done_nbytes in progress
    done = [event for event in events if isinstance(event, TensorDone)]
    assert len({event.name for event in done}) == len(done) == events[0].n_tensors  # type: ignore[union-attr]
    assert (done[0].name, done[-1].name) == ("token_embd.weight", "output.weight")
    assert events[-1] == Finished(out, len(whole))
    assert out.read_bytes() == whole
    assert names(tmp_path) == ["o.gguf"]


def test_nothing_finished_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    interrupt(checkpoint, tmp_path / "o.gguf", 0)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "q4_0"}, "the recipe changed"),
        ({"tensor_types": ["attn_v=f16"]}, "the recipe changed"),
    ],
)
def test_another_recipe_starts_anew(
    options: dict[str, object], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out)
    events = go_on(checkpoint, out, **options)
    assert f"of another run ({message}): starting over" in warnings(events)
    assert resumed(events) is None
    go_on(checkpoint, tmp_path / "fresh.gguf", **options)
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


def test_a_changed_config_starts_anew(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    out = tmp_path / "o.gguf"
    interrupt(folder, out)
    (folder / "generation_config.json").write_text('{"top_k": 3}')
    events = go_on(folder, out)
    assert "config or tokenizer changed): starting over" in warnings(events)
    assert resumed(events) is None
    go_on(folder, tmp_path / "fresh.gguf")
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


def test_a_changed_shard_costs_what_was_made_from_it(checkpoint: Path, tmp_path: Path) -> None:
    """The second of two shards begins in the middle of a layer's tensors."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    out = tmp_path / "o.gguf"
    interrupt(folder, out, 90)
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    events = go_on(folder, out)
    found = resumed(events)
    assert found is not None
    n_again = 90 - found.n_tensors
    assert 20 < n_again < 70
    assert f"the weights changed: {n_again} of the 90 tensors" in warnings(events)
    assert found.n_damaged == 0
    go_on(folder, tmp_path / "fresh.gguf")
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


def test_a_damaged_shard_keeps_the_work(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    """It is found out late, and has to be downloaded again."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    out = tmp_path / "o.gguf"
    shard = sorted(folder.glob("*.safetensors"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[:-2] + b"\x80\x7f")
    with pytest.raises(DotsError, match="holds inf"):
        go_on(folder, out)
    shard.write_bytes(good)
    found = resumed(go_on(folder, out))
    assert found is not None
    assert found.n_tensors > 20
    assert out.read_bytes() == whole


def test_damage_in_the_part_is_made_good(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    """In a finished tensor, in front of the tensors and behind them."""
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out)
    part = out.with_name("o.gguf.part")
    data = bytearray(part.read_bytes())
    data[read_gguf(checkpoint.parent / "whole.gguf").data_offset + 50_000] ^= 4
    data[:4] = b"abcd"
    data[-1] ^= 255
    part.write_bytes(data)
    found = resumed(go_on(checkpoint, out))
    assert found is not None
    assert (found.n_tensors, found.n_damaged) == (19, 1)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -1, -200])
def test_a_torn_journal_is_read_as_far_as_it_goes(
    cut: int, checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out)
    path = out.with_name("o.gguf.part.journal")
    path.write_bytes(path.read_bytes()[:cut])
    if cut == 1:  # nothing says that it is a journal
        with pytest.raises(DotsError, match="is not a journal of dots") as caught:
            go_on(checkpoint, out)
        assert caught.value.hint.startswith("use --restart")
        path.unlink()
        cut = 0
    events = go_on(checkpoint, out)
    found = resumed(events)
    assert (found is None) == (cut >= 0)
    assert ("damaged: starting over" in warnings(events)) == (cut > 0)
    assert found is None or found.n_tensors in range(15, 20)
    assert out.read_bytes() == whole


def test_flipped_bits_in_the_journal(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    rng = random.Random(1)
    out = tmp_path / "o.gguf"
    for _ in range(5):
        interrupt(checkpoint, out, 10)
        path = out.with_name("o.gguf.part.journal")
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            go_on(checkpoint, out)
        except DotsError as error:  # the first characters aren't those of a journal any more
            assert "is not a journal" in error.message
            go_on(checkpoint, out, restart=True)
        assert out.read_bytes() == whole
        out.unlink()


def test_a_part_that_is_gone_or_of_another_size(
    checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    part = out.with_name("o.gguf.part")
    interrupt(checkpoint, out)
    part.unlink()
    assert "is gone: starting over" in warnings(go_on(checkpoint, out))
    assert out.read_bytes() == whole
    out.unlink()
    interrupt(checkpoint, out)
    os.truncate(part, 1000)
    go_on(checkpoint, out)
    assert out.read_bytes() == whole


def test_restart_throws_the_work_away(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out)
    events = go_on(checkpoint, out, restart=True)
    assert resumed(events) is None
    assert warnings(events) == ""
    assert out.read_bytes() == whole


def test_output_that_appears_meanwhile_stays(
    checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    events = quantize_checkpoint(checkpoint, out, "q8_0")
    next(events)
    out.write_bytes(b"precious")
    with pytest.raises(DotsError, match="appeared in the meantime"):
        list(events)
    assert out.read_bytes() == b"precious"
    with pytest.raises(DotsError, match="already exists"):
        go_on(checkpoint, out)
    found = resumed(go_on(checkpoint, out, force=True))
    assert found is not None
    assert found.n_damaged == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_work(
    number: int, status: int, checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    with subprocess.Popen(
        command(checkpoint, out, 0.01), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("TensorDone"):
                break
        process.send_signal(number)
        started = time.monotonic()
        try:
            assert process.wait(timeout=30) == status
        finally:
            process.kill()
        assert time.monotonic() - started < 10
    assert resumed(go_on(checkpoint, out)) is not None
    assert out.read_bytes() == whole


def test_a_full_disk_keeps_the_work(
    checkpoint: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.gguf"
    write, left = os.pwrite, [200_000]

    def until_full(fd: int, data: bytes, offset: int) -> int:
        left[0] -= len(data)
        if left[0] < 0 and len(data) > 10_000:
            raise OSError(28, "No space left on device")
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", until_full)
        with pytest.raises(DotsError, match=r"the disk of .*o\.gguf\.part is full") as caught:
            go_on(checkpoint, out, threads=1)
        assert "run the same command again" in caught.value.hint
    found = resumed(go_on(checkpoint, out))
    assert found is not None
    assert found.n_tensors > 0
    assert out.read_bytes() == whole


def test_nothing_is_claimed_before_it_is_synced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses to sync: then the journal may not know of a single tensor."""

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    monkeypatch.setattr(journal, "SYNC_S", 0.0)
    with pytest.raises(DotsError, match="Input/output error"):
        go_on(checkpoint, tmp_path / "o.gguf")
    assert names(tmp_path) == []


def test_small_tensors_are_synced_together(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(sync(fd)))
    go_on(checkpoint, tmp_path / "o.gguf")
    assert len(synced) < 10


def test_the_command_says_how_to_go_on(checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    interrupt(checkpoint, out)
    done = dots("quantize", checkpoint, "-o", out, "--type", "q8_0", "--json")
    assert "resuming: 20 tensors are kept" in done.stderr
    assert len(done.json["tensors"]) == 94
    assert out.read_bytes() == whole
    out.unlink()
    interrupt(checkpoint, out)
    done = dots("quantize", checkpoint, "-o", out, "--type", "q8_0", "--restart")
    assert "going on" not in done.stderr
    assert out.read_bytes() == whole


def test_a_signal_while_the_part_is_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C between the opening of the part and its lock once left an empty part behind."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dotscli.quantize.output.part_file.lock_file", interrupted)
    with pytest.raises(KeyboardInterrupt), PartFile(tmp_path / "o.gguf", 1 << 20):
        pass
    assert not list(tmp_path.iterdir())
