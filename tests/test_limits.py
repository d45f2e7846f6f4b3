"""Too much of anything is an error of one line: JSON without end, memory that runs out."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.hot.heat_store import load as load_heat
from dotscli.models.gguf_file import MAX_HEADER_NBYTES, read_gguf
from dotscli.models.json_file import MAX_JSON_NBYTES, MAX_VALUES, parse_object, read_object, shown
from dotscli.models.vocab import Vocab
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.source.safetensors_header import MAX_HEADER_NBYTES as MAX_SHARD_HEADER
from dotscli.quantize.source.safetensors_header import read_header
from dotscli.quantize.threads import in_order
from tests import tiny
from tests.transcript import command, environment

MANY = MAX_VALUES + 10
TOO_MANY = {
    "list": b'{"a":[' + b"1," * MANY + b"1]}",
    "nested lists": b'{"a":[' + b"[]," * (MANY // 2) + b"1]}",
    "empty objects": b"{" + b",".join(b'"%d":{}' % n for n in range(MANY // 2)) + b"}",
    "keys": b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}",
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_json_of_too_many_values_is_refused_before_it_is_parsed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TOO_MANY[name]
    monkeypatch.setattr(json, "loads", lambda *_arguments, **_options: pytest.fail("parsed"))
    for value in (text, text.decode()):
        with pytest.raises(DotsError, match="the file has more than 1048576 values"):
            parse_object(value, "the file")
    (tmp_path / "heat.json").write_bytes(text)
    with pytest.raises(DotsError, match=r"more than 1048576 values|heat file: \d+ bytes"):
        load_heat(tmp_path / "heat.json")


def test_a_tokenizer_with_a_million_objects_where_a_boolean_belongs(tmp_path: Path) -> None:
    """To read it took 20 seconds."""
    folder = tiny.write_checkpoint(tmp_path / "in")
    path = folder / "tokenizer.json"
    many = "{" + ",".join(f'"k{n}":{{}}' for n in range(1 << 20)) + "}"
    whole = path.read_text()
    path.write_text(whole.replace('"normalized": false', f'"normalized": {many}', 1))
    assert len(path.read_bytes()) > 10_000_000
    model = plan_checkpoint(folder).model
    begun = time.process_time()
    with pytest.raises(DotsError, match=r"tokenizer\.json has more than 1048576 values"):
        Vocab.load(folder, model)
    assert time.process_time() - begun < 3


def test_files_that_are_too_large_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_SHARD_HEADER + 1))
        file.truncate(1 << 40)
    with pytest.raises(DotsError, match="larger than"):
        read_object(path)
    with pytest.raises(DotsError, match="more than the 33554432 that dots reads"):
        read_header(path)


def test_a_gguf_header_without_end(tmp_path: Path) -> None:
    """A hole in a file is as long as somebody says it is: an array of zeros, 1 TiB of them."""
    path = tmp_path / "hole.gguf"
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 39)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
        file.truncate(1 << 40)
    with pytest.raises(DotsError, match="the header is longer than 64 MiB"):
        read_gguf(path)
    assert MAX_HEADER_NBYTES == 64 << 20


PEAK = """
    import sys
    from pathlib import Path
    from dotscli.models.json_file import read_object

    def peak():  # ru_maxrss would begin with what the parent had
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    before = peak()
    read_object(Path(sys.argv[1]))
    print((peak() - before) // 1024)
"""


def large_index() -> str:
    """As many entries as are allowed, every key and value another, filling the size allowed."""
    width = ((MAX_JSON_NBYTES - 100) // (MAX_VALUES - 1) - 6) // 2
    pairs = (f'"{n:0{width}d}":"{n:0{width}x}"' for n in range(MAX_VALUES - 2))
    return "{" + ",".join(pairs) + "}"


def large_lists() -> str:
    """Lists of one string each, in a text whose characters take four bytes."""
    return '{"a":[' + f'["é{"x" * 54}"],' * (MAX_VALUES // 2 - 4) + '"😀"]}'


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("make", [large_index, large_lists])
def test_at_the_limits_json_takes_less_than_500_mb(make: Callable[[], str], tmp_path: Path) -> None:
    """An index of 90 MB once took 2.5 GB."""
    path = tmp_path / "large.json"
    path.write_text(make(), encoding="utf-8")
    assert 0.9 * MAX_JSON_NBYTES < path.stat().st_size <= MAX_JSON_NBYTES
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 100 < int(done.stdout) < 500


def test_the_real_models_files_are_far_within(tmp_path: Path) -> None:
    """24,231 tensors in an index, and a vocabulary of 152,064 tokens with merges as pairs."""
    shard = "model-00001-of-00064.safetensors"
    index = {f"model.layers.61.mlp.experts.{n}.gate_proj.weight": shard for n in range(24_231)}
    vocabulary = {f"token{n}": n for n in range(152_064)}
    merges = [[f"a{n}", f"b{n}"] for n in range(151_387)]
    for document in ({"weight_map": index}, {"vocab": vocabulary, "merges": merges}):
        (tmp_path / "file.json").write_text(json.dumps(document))
        read_object(tmp_path / "file.json")


def limited(nbytes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))

    return subprocess.run(
        command(*words), capture_output=True, text=True, env=environment(), preexec_fn=limit,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("megabytes", [40, 90, 150, 220, 300, 400])
def test_memory_that_runs_out_is_one_line(
    megabytes: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.gguf"
    done = limited(megabytes << 20, "quantize", tiny_checkpoint, "-o", out, "--threads", "4")
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert out.exists()
    else:
        assert done.returncode == 1, done.stderr
        # numpy's OpenBLAS has a line and an exit of its own
        assert done.stderr.count("\nerror: ") + done.stderr.startswith(("error", "OpenBLAS")) == 1


def test_memory_that_runs_out_in_a_thread_keeps_the_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dotscli.quantize.encoder import Encoder
    from tests.test_resume import go_on, resumed
    from tests.transcript import dots

    encode, left = Encoder.encode, [40]

    def until_exhausted(self: Encoder, job: object) -> memoryview:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return encode(self, job)  # type: ignore[arg-type]

    out = tmp_path / "o.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", until_exhausted)
        done = dots("quantize", tiny_checkpoint, "-o", out, "--type", "q8_0")
    assert done.exit_status == 1
    assert "error: there is not enough memory" in done.stderr
    assert "finished tensors are kept" in done.stderr
    assert resumed(go_on(tiny_checkpoint, out)) is not None


def test_threads_that_cannot_be_started(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("dotscli.quantize.threads.start_new_thread", refuse)
    with (
        pytest.raises(DotsError, match="2 threads can't be started") as caught,
        in_order(lambda item: item, [1, 2, 3], 2) as results,
    ):
        list(results)
    assert "fewer --threads" in caught.value.hint
    with pytest.raises(DotsError, match="threads can't be started"):
        list(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", threads=3))


def test_a_number_of_threads_has_a_range(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for threads in (-1, 1025):
        with pytest.raises(DotsError, match=f"--threads {threads} is out of range"):
            quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", threads=threads)


def test_shards_hold_a_bounded_number_of_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    monkeypatch.setattr("dotscli.quantize.source.shards.MAX_TENSORS", 20)
    with pytest.raises(DotsError, match="more than 20 tensors"):
        list(quantize_checkpoint(folder, tmp_path / "o.gguf"))


def test_a_value_of_too_many_levels_can_still_be_complained_about() -> None:
    value: list[object] = []
    for _ in range(sys.getrecursionlimit() + 100):
        value = [value]
    assert shown(value) == "a value of too many levels"
