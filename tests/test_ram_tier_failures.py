"""Reads that fail: tried again, or one error. Never another answer, never the end of the process.

Each case runs in a process of its own, with tests/native/failing_reads.cpp in front of libc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from dotscli.hot.backend import library
from tests.dots1_gguf import Type, log, write_model
from tests.hot_devices import ROOT, compiler

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)
if sys.platform != "linux" or not compiler():
    pytest.skip("glibc and a compiler", allow_module_level=True)

CODE = """
import json, sys
from pathlib import Path
import numpy as np
from tests.dots1_gguf import Run, batches, log
from tests.tier_kit import Tiered

path, sizes = Path(sys.argv[1]), (1, 2, 40, 300, 1, 1, 1, 1)
with log():
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(sizes)]
    failed, said = 0, []
    with Tiered(path, float(sys.argv[2])) as tiered:
        tiered.hot.warm({}, [(1, 0), (1, 1), (2, 3)])
        for _ in range(3):
            tiered.run.clear()
            for batch, wanted in zip(batches(sizes), expected):
                status = tiered.run.try_decode(batch)
                if status:
                    failed += 1
                    said.append(tiered.hot.failure())
                    break
                logits = tiered.run.logits(len(batch))
                np.testing.assert_array_equal(logits, wanted)
        print(json.dumps([failed, sorted(set(said)), tiered.hot.ram().read_experts]))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("shim") / "libfailing_reads.so"
    source = ROOT / "tests/native/failing_reads.cpp"
    command = [str(compiler()), "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-ldl"]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failing") / "m.gguf"
    with log():
        return write_model(path, Type.Q8_0, Type.Q4_0, n_layers=4, n_experts=16, n_experts_used=4)


def outcome(model: Path, shim: Path, share: float, **env: object) -> tuple[int, list[str], int]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model), str(share)],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=100,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "LD_PRELOAD": str(shim)}
        | {key: str(value) for key, value in env.items()},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    failed, said, n_read = json.loads(done.stdout)
    return failed, said, n_read


@pytest.mark.parametrize("how", ["short", "odd", "again"])
def test_reads_that_bring_less_are_gone_on_with(how: str, model: Path, shim: Path) -> None:
    found = outcome(model, shim, 0.1, FAIL_HOW=how, FAIL_FROM=0, FAIL_EVERY=2)
    assert found[0] == 0
    assert found[2] > 100


def test_an_error_now_and_then_is_tried_again(model: Path, shim: Path) -> None:
    found = outcome(model, shim, 0.1, FAIL_HOW="eio", FAIL_FROM=3, FAIL_EVERY=50)
    assert found[:2] == (0, [])


@pytest.mark.parametrize(
    ("how", "reason"),
    [("eio", "Input/output error"), ("end", "the file has become shorter")],
)
@pytest.mark.parametrize("first", [0, 1, 40, 200])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_disk_that_fails_for_good_is_one_error(
    share: float, first: int, how: str, reason: str, model: Path, shim: Path
) -> None:
    found = outcome(model, shim, share, FAIL_HOW=how, FAIL_FROM=first, FAIL_EVERY=1)
    failed, said, n_read = found
    if failed == 0:
        assert share > 0
        assert 3 * n_read < first  # all that was wanted had been read before
        return
    assert said == [f"{model}: {reason}"]
