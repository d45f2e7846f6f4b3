"""File names that are no UTF-8: legal on Linux, and nothing that a traceback should come of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dotscli.quantize.imatrix.file import read_imatrix
from tests import reference, tiny
from tests.transcript import command, environment

ODD = os.fsdecode(b"caf\xe9 \xff")  # Latin-1
DATA = Path(__file__).parent / "data" / "imatrix"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")


def process(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*words), capture_output=True, env=environment(), check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, a checkpoint in it, a text: all with such names."""
    folder = tmp_path_factory.mktemp("names") / ODD
    tiny.write_checkpoint(folder / ODD, n_layers=2)
    shutil.copy(DATA / "text.txt", folder / f"{ODD}.txt")
    return folder


def test_quantize_verify_and_inspect(folder: Path) -> None:
    out, report = folder / f"{ODD}.gguf", folder / f"{ODD}.json"
    done = process("quantize", folder / ODD, "-o", out, "--report", report, "--type", "q8_0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.fsencode(out) + b"\n"  # $(dots quantize ...) names the file
    assert b"Traceback" not in done.stderr
    assert reference.read_keys(out)["general.name"] == "Caf? ?"
    assert json.loads(report.read_bytes())["output"] == out.name
    for words in (("verify", out), ("inspect", out), ("inspect", out, "--experts")):
        done = process(*words)
        assert done.returncode == 0, done.stderr
    done = process("quantize", folder / ODD, "-o", out, "--force", "--type", "q8_0", "--json")
    assert json.loads(done.stdout)["path"] == str(out)
    done = process("quantize", folder / ODD, "-o", out)
    assert done.returncode == 1
    assert b"already exists" in done.stderr


def test_an_interrupted_run_goes_on(folder: Path) -> None:
    from tests.test_resume import go_on, interrupt, resumed

    interrupt(folder / ODD, folder / f"again {ODD}.gguf")
    found = resumed(go_on(folder / ODD, folder / f"again {ODD}.gguf"))
    assert found is not None
    assert found.n_tensors == 20


def test_calibrate_and_what_is_made_with_it(folder: Path) -> None:
    model, matrix = folder / f"f32 {ODD}.gguf", folder / f"{ODD}.imatrix.gguf"
    text = folder / f"{ODD}.txt"
    assert process("quantize", folder / ODD, "-o", model, "--type", "f32").returncode == 0
    done = process("calibrate", model, "-f", text, "-o", matrix, "-c", "64", "--chunks", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(os.fsencode(matrix) + b"\n")
    assert read_imatrix(matrix).datasets[0].endswith("caf? ?.txt")
    out = folder / "with.gguf"
    done = process("quantize", folder / ODD, "-o", out, "--imatrix", matrix)
    assert done.returncode == 0, done.stderr
    assert reference.read_keys(out)["quantize.imatrix.file"] == "caf? ?.imatrix.gguf"


def test_what_is_not_there_is_named(folder: Path) -> None:
    for words in (("inspect", folder / "no" / ODD), ("verify", folder / f"no{ODD}.gguf")):
        done = process(*words)
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert b"\\udce9" in done.stderr
