"""What the runner of the fuzzer notices, and that a seed gives the same inputs again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutate_json, runner
from tests.fuzz.child import ROOT
from tests.fuzz.inflight import Inflight, State
from tests.fuzz.minimise import minimise
from tests.fuzz.runner import Finding, fuzz, read_input, replay, write_input
from tests.fuzz.target import TARGETS, pack, unpack
from tests.fuzz.worker import answers
from tests.fuzz.worker_messages import conversation, encoded
from tests.workers import running_worker

pytestmark = pytest.mark.skipif(os.name != "posix", reason="watches processes as POSIX has them")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("fine", None), ("refused", None), ("raises", "exception"), ("leaves", "exception"),
        ("wrong", "wrong"), ("wordless", "wrong"), ("dies", "death"), ("hangs", "hang"),
        ("eats", "memory"),
    ],
)  # fmt: skip
def test_what_an_input_does_is_noticed(word: str, kind: str | None, tmp_path: Path) -> None:
    """And the inputs after it are run as well."""
    paths = []
    for number, text in enumerate(("fine", word, "fine")):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_text(text)
    result = replay("harmful", paths)
    assert result.n_inputs == 3
    assert [f.kind for f in result.findings.values()] == ([] if kind is None else [kind])
    assert [f.data for f in result.findings.values()] == ([] if kind is None else [word.encode()])


def test_a_seed_gives_the_same_inputs_and_the_shortest_is_kept() -> None:
    results = [fuzz("harmful", 5, 0.5) for _ in range(2)]
    for result in results:
        assert {f.name: (f.kind, f.data, f.repeats) for f in result.findings.values()} == {
            "KeyError in tests/fuzz/harmful.py:run": ("exception", b"raises", True),
            "wrong: it is wrong": ("wrong", b"wrong", True),
        }
        assert sum(f.hits for f in result.findings.values()) in range(10, result.n_inputs)


def test_an_input_is_kept_and_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CORPUS", tmp_path)
    long = b"raises" + b"!" * 5000
    path = write_input(Finding("exception", "KeyError", "", long, 0), "harmful", tmp_path)
    assert path.parent == tmp_path / "harmful"
    assert path.suffix == ".gz"
    assert read_input(path) == long
    assert read_input(minimise(path)) == b"raises"


def test_what_makes_the_inputs_may_fail_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMFUL_MAKER", "raises")
    result = fuzz("harmful", 5, 0.5)
    assert "KeyError: 'maker'" in result.findings["the attacker itself"].text
    assert result.n_inputs == 3


def test_spoiled_json_never_holds_itself() -> None:
    """Not even where one object comes twice: it could be written down only without end."""
    for number in range(1000):
        rng, twice = Random(number), {"x": 1, "y": {"z": 2}}
        tree: object = {"a": twice, "b": twice}
        for _ in range(4):
            tree = mutate_json._changed(rng, tree)
        json.dumps(tree)


WRITER = """
import sys, time
from pathlib import Path
from tests.fuzz.inflight import Inflight, State
shared, end = Inflight(Path(sys.argv[1])), time.monotonic() + 4
while time.monotonic() < end:
    for n in (1, 2):
        shared.write(State(n, n, float(n), float(n), n, n))
"""


def test_what_is_half_written_is_no_state(tmp_path: Path) -> None:
    """One whose first number was still 0 was taken for a child that doesn't begin."""
    whole = [State(n, n, float(n), float(n), n, n) for n in (0, 1, 2)]
    shared = Inflight(tmp_path / "inflight", new=True)
    words = [sys.executable, "-c", WRITER, str(tmp_path / "inflight")]
    with subprocess.Popen(words, cwd=ROOT) as writer:
        while writer.poll() is None:
            for _ in range(1000):
                assert shared.state() in whole
    assert shared.state() in whole[1:]
    shared.close()


def test_files_go_into_an_input_and_come_out() -> None:
    files = {"a b.json": b"==> a 3\n\xff", "b": b""}
    assert unpack(pack(files)) == files
    assert unpack(b"nonsense") == {}
    assert unpack(b"==> a 9999999999\nx") == {"a": b"x"}


def test_the_messages_to_a_worker_come_from_a_conversation_that_it_has_to_the_end() -> None:
    """Ones and zeros are added there; a wrong message would make it hang up."""
    with running_worker() as worker:
        host, port = worker.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 5.0) as peer:
            found = list(answers(peer, encoded(conversation(4))))
    assert len(found) == 1 + 4 * 12
    assert found[-1] == b"\1" * 256


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_makes_different_inputs(target: str, tmp_path: Path) -> None:
    from tests.fuzz.target import target_named

    made = target_named(target, tmp_path)
    made.valid.mkdir()
    made.work.mkdir()
    made.prepare()
    made.open()
    inputs = [made.make(Random(number)) for number in range(20)]
    assert len(set(inputs)) > 15
    assert inputs == [made.make(Random(number)) for number in range(20)]
    made.close()
