"""The reads of the memory tier, in C++: every byte is the file's, however it lies.

Where there are MinGW's compiler and Wine, Windows' side is built and run as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hot_devices import ROOT, compiler

NBYTES = 40_000_003  # not whole blocks
NATIVE = ROOT / "dotscli/native"
MINGW = "x86_64-w64-mingw32-g++-posix"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-std=c++17", "-O1")


def build(command: str, system: str, target: Path, *more: str) -> None:
    parts = ("disk.cpp", f"raw_file_{system}.cpp", f"reserve_{system}.cpp")
    sources = [ROOT / "tests/native/disk_test.cpp", *(NATIVE / "hot" / part for part in parts)]
    subprocess.run(
        [command, *WARNINGS, f"-I{NATIVE}", *sources, "-o", target, "-lpthread", *more], check=True
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bytes"
    path.write_bytes(os.urandom(NBYTES))
    return path


def test_every_byte_is_the_file_s(file: Path, tmp_path: Path) -> None:
    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler")
    build(command, "posix", tmp_path / "disk_test")
    done = subprocess.run(
        [tmp_path / "disk_test", file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:3]) == (0, "ok,"), done.stdout


@pytest.mark.skipif(
    shutil.which(MINGW) is None or shutil.which("wine") is None, reason="no MinGW or no Wine"
)
def test_windows_reads_the_same(file: Path, tmp_path: Path) -> None:
    build(MINGW, "windows", tmp_path / "disk_test.exe", "-static")
    env = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    done = subprocess.run(
        ["wine", tmp_path / "disk_test.exe", f"Z:{file}"],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.stdout.strip() == "ok, direct", done.stdout + done.stderr


@pytest.mark.skipif(shutil.which(MINGW) is None, reason="no MinGW")
def test_all_of_it_compiles_for_windows(tmp_path: Path) -> None:
    names = sorted(
        path.name for path in (NATIVE / "hot").glob("*.cpp") if not path.stem.endswith("_posix")
    )
    for name in names:
        target = tmp_path / f"{name}.o"
        command = [MINGW, *WARNINGS, f"-I{NATIVE}", "-c", NATIVE / "hot" / name, "-o", target]
        subprocess.run(command, check=True)
