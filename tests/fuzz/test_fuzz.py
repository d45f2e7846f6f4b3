"""Ten seconds of attacks on everything that `dots` reads, after every input that once did harm.

DOTS_FUZZ_SECONDS sets the time and DOTS_FUZZ_SEED the seed, which is always the same here: whether
these tests pass follows from the code. `make fuzz` draws a new one.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.runner import CORPUS, Result, fuzz, replay, write_input
from tests.fuzz.target import TARGETS

SECONDS = float(os.environ.get("DOTS_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("DOTS_FUZZ_SEED", "1"))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="watches processes as POSIX has them")


def told(result: Result) -> str:
    return "\n".join(f"{f.name} (input {f.number}):\n{f.text}" for f in result.findings.values())


@pytest.mark.parametrize("target", TARGETS)
def test_what_once_did_harm_does_none(target: str) -> None:
    paths = sorted((CORPUS / target).glob("*.*"))
    result = replay(target, paths) if paths else Result(target)
    assert result.n_inputs == len(paths)
    assert not result.findings, told(result)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_harm(target: str) -> None:
    result = fuzz(target, SEED, SECONDS)
    kept = [write_input(finding, target) for finding in result.findings.values() if finding.data]
    print(f"{target}: seed {SEED}, {result.n_inputs} inputs, {result.seconds:.1f} s, kept: {kept}")
    assert result.n_inputs > 0
    assert not result.findings, told(result)
