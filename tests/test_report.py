"""`dots quantize --report`: the relative error of every matrix, whole after any interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.convert import Event, Resumed, TensorDone
from dotscli.quantize.output.error_report import ErrorReport, read_report
from tests.test_importance import measurements, write
from tests.transcript import dots

TYPE = "q4_k_m"


@pytest.fixture(scope="module")
def imatrix(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    return write(path, measurements(tiny_checkpoint))


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The report that every run has to end with."""
    folder = tmp_path_factory.mktemp("whole")
    run = quantize_checkpoint(tiny_checkpoint, folder / "o.gguf", TYPE, report=folder / "r.json")
    list(run)
    return (folder / "r.json").read_bytes()


def events(
    checkpoint: Path, folder: Path, with_report: bool = True, **more: bool
) -> Iterator[Event]:
    report = folder / "r.json" if with_report else None
    return quantize_checkpoint(checkpoint, folder / "o.gguf", TYPE, report=report, **more)


def interrupt(run: Iterator[Event], n_tensors: int = 30) -> None:
    for event in run:
        n_tensors -= isinstance(event, TensorDone)
        if not n_tensors:
            break
    run.close()  # type: ignore[attr-defined]


def test_errors_are_those_that_verify_measures(
    tiny_checkpoint: Path, imatrix: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "o.gguf", tmp_path / "r.json"
    done = dots("quantize", tiny_checkpoint, "-o", out, "--report", report, "--imatrix", imatrix)
    assert done.exit_status == 0, done.stderr
    assert f"dots inspect {out} --experts --report {report}" in done.stderr
    verified = dots(
        "verify", out, "--against", tiny_checkpoint, "--imatrix", imatrix, "--json"
    ).json["errors"]
    tensors = read_report(report)
    expected = {(e["tensor"], e["expert"]): e["error"] for e in verified}
    found = {
        (tensor.name, expert if tensor.stacked else None): error
        for tensor in tensors
        for expert, error in enumerate(tensor.errors)
    }
    assert found == pytest.approx(expected, rel=1e-4)
    document = json.loads(report.read_text())
    assert (document["output"], document["importance"]) == ("o.gguf", "i.gguf")
    assert document["bytes"] == sum(tensor.nbytes for tensor in tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    assert by_name["blk.1.ffn_down_exps.weight"].weighted
    assert not by_name["output_norm.weight"].weighted
    assert by_name["output_norm.weight"].errors == (0.0,)


def test_importance_lowers_the_error_that_it_weights(
    tiny_checkpoint: Path, imatrix: Path, tmp_path: Path
) -> None:
    for name, matrix in (("with", imatrix), ("without", None)):
        out = tmp_path / f"{name}.gguf"
        run = quantize_checkpoint(
            tiny_checkpoint, out, "q4_0", imatrix=matrix, report=tmp_path / f"{name}.json"
        )
        list(run)
    weighted, plain = (read_report(tmp_path / f"{n}.json") for n in ("with", "without"))
    mean = [
        np.mean([error for tensor in tensors if tensor.stacked for error in tensor.errors])
        for tensors in (weighted, plain)
    ]
    assert 0 < mean[0] < mean[1] < 0.15


def test_threads_change_nothing(tiny_checkpoint: Path, whole: bytes, tmp_path: Path) -> None:
    run = quantize_checkpoint(
        tiny_checkpoint, tmp_path / "o.gguf", TYPE, report=tmp_path / "r.json", threads=1
    )
    list(run)
    assert (tmp_path / "r.json").read_bytes() == whole


@pytest.mark.parametrize("first_run_measures", [True, False])
def test_a_resumed_run_reports_every_tensor(
    first_run_measures: bool,
    tiny_checkpoint: Path,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Errors are kept in the journal; those of a run without a report are measured now."""
    interrupt(events(tiny_checkpoint, tmp_path, first_run_measures))
    measured = []
    add = ErrorReport.add
    monkeypatch.setattr(
        ErrorReport,
        "add",
        lambda self, index, *more: (measured.append(index), add(self, index, *more)),
    )
    resumed = [e for e in events(tiny_checkpoint, tmp_path) if isinstance(e, Resumed)]
    assert resumed[0].n_tensors >= 30
    assert (min(measured) >= 30) == first_run_measures
    assert (tmp_path / "r.json").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "r.json"]


def test_killed_before_the_report_is_written(
    tiny_checkpoint: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output has its name already: the same command takes it back and writes the report."""

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ErrorReport, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            list(events(tiny_checkpoint, tmp_path))
    assert (tmp_path / "o.gguf").exists()
    assert not (tmp_path / "r.json").exists()
    list(events(tiny_checkpoint, tmp_path))
    assert (tmp_path / "r.json").read_bytes() == whole


def test_damaged_and_stale_tensors_are_measured_anew(
    tiny_checkpoint: Path, whole: bytes, tmp_path: Path
) -> None:
    interrupt(events(tiny_checkpoint, tmp_path))
    part = tmp_path / "o.gguf.part"
    data = bytearray(part.read_bytes())
    for position in range(20_000, 200_000, 7_000):
        data[position] ^= 1
    part.write_bytes(data)
    resumed = [e for e in events(tiny_checkpoint, tmp_path) if isinstance(e, Resumed)]
    assert resumed[0].n_damaged > 0
    assert (tmp_path / "r.json").read_bytes() == whole


def test_an_interrupted_run_leaves_no_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    interrupt(events(tiny_checkpoint, tmp_path))
    assert not (tmp_path / "r.json").exists()


def test_nothing_of_the_users_is_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text("precious")
    with pytest.raises(DotsError, match=r"r\.json already exists"):
        list(events(tiny_checkpoint, tmp_path))
    assert report.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [report]
    list(events(tiny_checkpoint, tmp_path, force=True))
    assert read_report(report)
    for place, message in (
        (tiny_checkpoint / "config.json", "is also an input"),
        (tmp_path / "x.gguf", "can't be both the output and the report"),
        (tmp_path / "no" / "r.json", "is not a folder"),
    ):
        run = quantize_checkpoint(
            tiny_checkpoint, tmp_path / "x.gguf", TYPE, report=place, force=True
        )
        with pytest.raises(DotsError, match=message):
            list(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list"),
        ("{}", "is not a report of format 1"),
        ('{"format": 1, "tensors": [1]}', "a tensor is not an object"),
        ('{"format": 1, "tensors": [{"name": "a"}]}', "no name, type or bytes"),
        ('{"format": 1, "tensors": [{"name": "a", "type": "F32", "bytes": 4}]}', "not a number"),
        (
            '{"format": 1, "tensors": [{"name": "a", "type": "F32", "bytes": 4, "error": [-1], '
            '"power": [1]}]}',
            "not a number from 0 up",
        ),
        (
            '{"format": 1, "tensors": [{"name": "a", "type": "F32", "bytes": 4, "error": [1], '
            '"power": [1e-310]}]}',
            "not a number from 0 up",
        ),
        ('{"format": 1, "tensors": []}' + " " * (16 << 20), "is larger than 16777216 bytes"),
        (
            '{"format": 1, "tensors": [{"name": "a", "type": "F32", "bytes": 4, "error": [1, 1], '
            '"power": [1]}]}',
            "2 errors and 1 powers",
        ),
        (
            '{"format": 1, "tensors": [{"name": "' + "a" * 5000 + '", "type": "F32", "bytes": 4}]}',
            "the name of a tensor has 5000 characters",
        ),
    ],
    ids=lambda text: text[:60],
)
def test_a_malformed_report_is_one_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(DotsError, match=message):
        read_report(path)
