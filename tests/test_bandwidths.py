"""Bandwidths: measured by `dots doctor --measure`, kept, and used by `dots plan`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.engine import bandwidth
from dotscli.engine.bandwidth import disk_bandwidth
from dotscli.engine.weight_rate import weight_rate
from dotscli.errors import DotsError
from dotscli.hot.bandwidths import MAX_DISKS, NAME, Bandwidths, keep, kept, mount_of
from tests.transcript import dots

REAL = Path(__file__).parent / "data" / "dots.llm1.inst"
MIB = 1 << 20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "big.bin"
    path.write_bytes(os.urandom(MIB) * 80)
    return path


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


def test_doctor_measures_and_a_plan_calculates_with_it(big: Path, here: dict[str, str]) -> None:
    before = dots("doctor", "--json", environ=here).json["bandwidths"]
    assert before == {"ram_bytes_per_second": None, "disks": []}
    words = ("plan", REAL, "--vram", "0", "--ram", "24G", "--json", "-ctk", "q8_0", "-ctv", "q8_0")
    assert dots(*words, environ=here).json["tokens_per_second"] is None

    found = dots("doctor", "--measure", big, "--json", environ=here).json["bandwidths"]
    assert found["ram_bytes_per_second"] > 1e8
    (disk,) = found["disks"]
    assert disk["mount"] == mount_of(big)
    assert disk["bytes_per_second"] > 1e6
    said = dots("doctor", environ=here).stdout
    assert "bandwidths   weights in main memory " in said
    assert ("direct I/O" if disk["direct"] else "through the page cache") in said

    given = ("--disk-bandwidth", "3G")  # the checkpoint may lie on another disk
    low, high = dots(*words, *given, environ=here).json["tokens_per_second"]
    same = ("--bandwidth", f"{found['ram_bytes_per_second'] / 1024:.3f}K")
    expected = dots(*words, *same, *given).json["tokens_per_second"]
    assert [low, high] == pytest.approx(expected, rel=1e-3)
    assert (
        dots(*words, *given, "--bandwidth", "1G", environ=here).json["tokens_per_second"][0] < low
    )


def test_a_file_that_says_nothing_about_a_disk(tmp_path: Path, here: dict[str, str]) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"x" * MIB)
    said = dots("doctor", "--measure", small, environ=here)
    assert said.exit_status == 1
    assert "too small to measure a disk with" in said.stderr
    for wrong in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        assert dots("doctor", "--measure", wrong, environ=here).exit_status == 1
    assert not (tmp_path / "dots" / NAME).exists()


def test_a_file_system_without_direct_io_is_read_through_the_cache(
    big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bandwidth.disk_bandwidth(big)
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    found = disk_bandwidth(big)
    assert not found.direct
    assert min(found.bytes_per_s, before.bytes_per_s) > 1e6


def test_no_descriptor_stays_open(big: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("counts in /proc")
    n_before = len(list(folder.iterdir()))
    disk_bandwidth(big)
    assert len(list(folder.iterdir())) == n_before


def test_too_little_memory_to_measure() -> None:
    with pytest.raises(DotsError, match="too little memory"):
        weight_rate(16 * MIB)


def test_another_disk_is_added_and_the_oldest_forgotten(tmp_path: Path) -> None:
    for number in range(MAX_DISKS + 3):
        keep(tmp_path, Bandwidths(1e9 + number, {f"/{number}": 2e9}, {f"/{number}": True}))
    found = kept(tmp_path)
    assert found.ram == 1e9 + MAX_DISKS + 2
    assert len(found.disks) == MAX_DISKS
    assert "/0" not in found.disks
    assert found.direct[f"/{MAX_DISKS + 2}"] is True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
ROW = st.fixed_dictionaries({"mount": JSON, "bytes_per_second": JSON, "direct": JSON})


@given(ram=JSON, disks=JSON | st.lists(ROW | JSON, max_size=4))
def test_whatever_the_kept_file_holds_rates_are_in_range(
    ram: object, disks: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    document = {"format": 1, "ram_bytes_per_second": ram, "disks": disks}
    (folder / NAME).write_text(json.dumps(document))
    found = kept(folder)
    rates = [*found.disks.values(), *([found.ram] if found.ram else [])]
    assert all(1e5 <= rate <= 1e14 for rate in rates)
    assert set(found.disks) == set(found.direct)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2}', b"\xff", b" " * (1 << 17)])
def test_a_kept_file_that_is_none_counts_as_nothing(text: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text)
    assert kept(tmp_path) == Bandwidths()
