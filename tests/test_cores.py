"""How many threads compute: physical cores, the fast ones of hybrid CPUs, within all limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.engine.cores import Cores, cores, linux_cores, usable_cores
from tests.transcript import dots


def machine(folder: Path, siblings: list[str], **files: str) -> Path:
    for cpu, listed in enumerate(siblings):
        place = folder / f"system/cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(listed + "\n")
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


SMT = ["0-1", "0-1", "2-3", "2-3"]
HYBRID = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]  # two fast cores, four slow ones


@pytest.mark.parametrize(
    ("siblings", "files", "allowed", "expected"),
    [
        (SMT, {}, {0, 1, 2, 3}, (2, 2)),
        (SMT, {}, {0, 1}, (1, 1)),  # both threads of one core
        (SMT, {}, {1, 3}, (2, 2)),
        (HYBRID, {"cpu_core__cpus": "0-3"}, set(range(8)), (6, 2)),
        (HYBRID, {"cpu_core__cpus": "0-3"}, {4, 5}, (2, 2)),  # tied to slow cores: all of them
        (["0", "1", "2"], {f"system__cpu__cpu{n}__cpu_capacity": t for n, t in
                           enumerate(("446", "1024", "1010"))}, {0, 1, 2}, (3, 2)),
        ([], {}, {0, 5}, (2, 2)),  # nothing is known
    ],
)  # fmt: skip
def test_cores_are_counted(
    siblings: list[str], files: dict[str, str], allowed: set[int], expected: tuple[int, int],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = linux_cores(allowed, machine(tmp_path, siblings, **files), tmp_path / "none")
    assert (found.physical, found.fast) == expected
    assert found.n_threads == expected[1]


@pytest.mark.parametrize(
    ("text", "n_threads"),
    [("max 100000", 2), ("100000 100000", 1), ("50000 100000", 1), ("900000 100000", 2), ("?", 2)],
)
def test_a_cgroup_may_allow_less(text: str, n_threads: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    found = linux_cores({0, 1, 2, 3}, machine(tmp_path, SMT), tmp_path / "cpu.max")
    assert found.n_threads == n_threads


@given(text=st.text(max_size=60))
def test_whatever_the_files_say_there_is_a_thread(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sys")
    machine(folder, ["0", "1"])
    for path in (folder / "system/cpu/cpu0/topology/thread_siblings_list", folder / "cpu.max"):
        path.write_text(text, encoding="utf-8", errors="replace")
    found = linux_cores({0, 1}, folder, folder / "cpu.max")
    assert 1 <= found.n_threads <= 2


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert dots("doctor", "--json").json["cores"]["threads"] == usable_cores()
    assert f"cores        {cores().describe()}" in dots("doctor").stdout


def test_what_doctor_says_of_a_hybrid() -> None:
    said = Cores(16, 8, 4).describe()
    assert said == (
        "8 fast of 16 physical, 4 allowed by the cgroup: 4 threads unless --threads says otherwise"
    )
