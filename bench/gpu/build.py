"""Fetching and building llama-cpp-python for a GPU, also where there is no network.

Everything is installed into one folder beside the Python that runs this (`site`), found through
PYTHONPATH: no virtual environment is needed, and what this Python has already need not be packed.
The build goes through llama-cpp-python's own build system in a folder that stays, so a build that
is stopped goes on where it was. Nothing is built for another GPU than the one that is there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.lib.measure import ROOT, note
from bench.lib.reference import LLAMA_CPP_PYTHON

SDIST = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
# Three quarters of the source distribution, and nothing that a build reads.
UNUSED = re.compile(r"[^/]+/(\.git|vendor/llama\.cpp/(docs|models|media|benches|tests))/.*")
BUILD_NEEDS = ("scikit-build-core", "cmake>=3.24", "ninja")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
NO_AMX = "-U__AMX_INT8__"  # see the Makefile
OWN_DRIVER_FOLDER = "/usr/local/nvidia/lib64"  # of containers; nothing else lies there
DRIVER_FOLDERS = (OWN_DRIVER_FOLDER, "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
STOP_S = 20  # for compilers to remove what they have half written


def requirements() -> list[str]:
    """What dots and llama-cpp-python need at run time, from pyproject.toml, without the latter."""
    text = (ROOT / "pyproject.toml").read_text()
    [block] = re.findall(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)
    found = [line for line in re.findall(r'"([^"]+)"', block) if ";" not in line]
    kept = [line for line in found if not line.startswith("llama-cpp-python")]
    return [*kept, "diskcache", *BUILD_NEEDS]


def pack(folder: Path, limit: int, python: str, have: Sequence[str]) -> None:
    """Collect the source and the wheels that a machine without network needs.

    Args:
        limit: the most bytes that the folder may have.
        python: version of the Python there, such as 3.12.
        have: packages that are there already.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fetched = folder / "fetched"
    _pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", fetched,
         f"llama-cpp-python=={LLAMA_CPP_PYTHON}")  # fmt: skip
    with (
        tarfile.open(fetched / f"{SDIST}.tar.gz") as source,
        tarfile.open(folder / f"{SDIST}.tar.gz", "w:gz") as packed,
    ):
        for member in source:
            if not UNUSED.match(member.name):
                packed.addfile(member, source.extractfile(member) if member.isfile() else None)
    shutil.rmtree(fetched)
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    _pip("download", "--only-binary", ":all:", "--python-version", python, "--implementation", "cp",
         *platforms, "-d", folder, *requirements())  # fmt: skip
    for wheel in folder.glob("*.whl"):
        if wheel.name.split("-")[0].replace("_", "-").lower() in have:
            wheel.unlink()
    sizes = sorted(((path.stat().st_size, path.name) for path in folder.iterdir()), reverse=True)
    total = sum(size for size, _ in sizes)
    note(f"  {folder}: {total / 1e6:.1f} MB in {len(sizes)} files")
    if total > limit:
        largest = ", ".join(f"{name} {size / 1e6:.1f} MB" for size, name in sizes[:4])
        raise SystemExit(f"more than {limit / 1e6:.0f} MB ({largest}): name more with --have")


def environment(site: Path) -> dict[str, str]:
    """The environment in which everything runs that was installed into `site`."""
    cublas = cublas_folder()
    libraries = [cublas / "lib"] if cublas else []
    libraries += [folder for folder in (Path(OWN_DRIVER_FOLDER),) if folder.is_dir()]
    return {
        **os.environ,
        "PYTHONPATH": _joined(ROOT, site, os.environ.get("PYTHONPATH")),
        "PATH": _joined(site / "bin", *_toolkit(), os.environ.get("PATH")),
        "LD_LIBRARY_PATH": _joined(*libraries, os.environ.get("LD_LIBRARY_PATH")),
    }


def hidden(env: dict[str, str]) -> dict[str, str]:
    """The same without a GPU: llama.cpp computes long batches on one that no layer was sent to."""
    return {**env, "CUDA_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}


def build(work: Path, site: Path, packed: Path | None, arch: str | None, end: float) -> bool:
    """Install llama-cpp-python and dots into `site`; whether it was finished by `end`.

    Args:
        packed: what `pack` collected, None where a package index can be reached.
        arch: CUDA architecture such as 90 for compute capability 9.0; None builds for the CPU.
        end: as time.monotonic() counts.
    """
    offline = ("--no-index", "--find-links", packed) if packed else ()
    if not (site / "scikit_build_core").is_dir():
        wheels = sorted(packed.glob("*.whl")) if packed else requirements()
        deps = ("--no-deps",) if packed else ()
        _pip("install", "--target", site, "--upgrade", *offline, *deps, *wheels)
    source = work / SDIST
    if not source.is_dir():
        unpack(work, packed)
    env = environment(site)
    options = ["-DGGML_RPC=on", f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}"]
    env["CMAKE_ARGS"] = " ".join([*options, *(cuda_options(arch) if arch else [])])
    done = work / "wheels"
    common = ("--no-deps", "--no-build-isolation", *offline)
    if not list(done.glob("llama_cpp_python-*.whl")):
        command = _pip_command(
            "wheel", *common, f"-Cbuild-dir={work / 'llama-build'}", "-w", done, source
        )
        note(f"  CMAKE_ARGS={env['CMAKE_ARGS']}")
        if not run_until(command, env, end):
            return False
    _pip("install", "--target", site, "--upgrade", *common, *done.glob("*.whl"), env=env)
    _pip("install", "--target", site, "--upgrade", *common, ROOT, env=env)
    return True


def install(site: Path, wheels: Sequence[Path], env: dict[str, str]) -> None:
    """Install wheels that were built elsewhere, and nothing that they ask for."""
    _pip("install", "--target", site, "--upgrade", "--no-index", "--no-deps", "--no-compile",
         *wheels, env=env)  # fmt: skip


def unpack(work: Path, packed: Path | None) -> None:
    """Fetch the source distribution unless it was packed, and unpack it whole or not at all."""
    if packed is None:
        _pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", work,
             f"llama-cpp-python=={LLAMA_CPP_PYTHON}")  # fmt: skip
    [archive] = (packed or work).glob(f"{SDIST}.tar.gz")
    part = work / "unpacking"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        if not hasattr(tarfile, "data_filter"):  # since 3.10.12; keeps paths inside the folder
            raise SystemExit("this Python can't unpack safely: use a newer one")
        tar.extractall(part, filter="data")
    (part / SDIST).rename(work / SDIST)
    part.rmdir()


def cuda_options(arch: str) -> list[str]:
    """CMake options for one architecture and the CUDA that is here, complete or from wheels.

    Raises:
        SystemExit: no nvcc, or no cuBLAS.
    """
    options = [
        "-DGGML_CUDA=on",
        f"-DCMAKE_CUDA_ARCHITECTURES={arch}",
        "-DGGML_CUDA_FA_ALL_QUANTS=off",
    ]
    nvcc = shutil.which("nvcc", path=_joined(*_toolkit(), os.environ.get("PATH")))
    if nvcc is None:
        raise SystemExit("there is no nvcc: install the CUDA toolkit, or add it to PATH")
    options.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
    root = Path(nvcc).resolve().parent.parent
    if not list(root.glob("**/include/cublas_v2.h")):
        folder = cublas_folder()
        if folder is None:
            raise SystemExit("CUDA has no cuBLAS here: install the package nvidia-cublas")
        options.append(f"-DCMAKE_CUDA_FLAGS=-I{folder / 'include'}")
        for name in ("cublas", "cublasLt"):
            [library] = (folder / "lib").glob(f"lib{name}.so.*")
            options.append(f"-DCUDA_{name}_LIBRARY={library}")
    if not list(root.glob("**/stubs/libcuda.so")):
        driver = next(_drivers(), None)
        # Without it ggml can be built, but not with its pool of virtual memory.
        options.append(
            f"-DCUDA_cuda_driver_LIBRARY={driver}" if driver else "-DGGML_CUDA_NO_VMM=on"
        )
    return options


def cublas_folder() -> Path | None:
    """Where the package nvidia-cublas lies, if this Python has it (CUDA 13, or CUDA 12)."""
    folders = (Path(path) / "nvidia" / name for path in sys.path for name in ("cu13", "cublas"))
    return next((path for path in folders if (path / "include/cublas_v2.h").is_file()), None)


def gpu_arch() -> str:
    """The architecture of the first GPU, such as 90.

    Raises:
        SystemExit: nvidia-smi is missing or sees no GPU.
    """
    try:
        text = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"nvidia-smi sees no GPU ({error}); --arch says what to build for"
        ) from None
    return text.split()[0].replace(".", "")


def run_until(command: Sequence[str], env: dict[str, str], end: float) -> bool:
    """Run a command and whatever it starts until it is done or time is up; whether it is done."""
    status = wait_until(subprocess.Popen(command, env=env, start_new_session=True), end)
    if status:
        raise SystemExit(f"{' '.join(command)}\nfailed with {status}")
    return status is not None


def wait_until(process: subprocess.Popen[bytes], end: float) -> int | None:
    """The exit status of the leader of a session, or None where it and all it started had to stop.

    Args:
        end: as time.monotonic() counts.
    """
    try:
        return process.wait(max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # make and ninja remove what isn't whole
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None


def _toolkit() -> list[Path]:
    folder = Path("/usr/local/cuda/bin")
    return [folder] if folder.is_dir() else []


def _drivers() -> Iterator[Path]:
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *DRIVER_FOLDERS]
    paths = (Path(folder) / "libcuda.so.1" for folder in folders if folder)
    return (path for path in paths if path.exists())


def _joined(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(part) for part in parts if part)


def _pip_command(*arguments: Path | str) -> list[str]:
    return [sys.executable, "-m", "pip", *map(str, arguments), "-q"]


def _pip(*arguments: Path | str, env: dict[str, str] | None = None) -> None:
    command = _pip_command(*arguments)
    if subprocess.run(command, env=env, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
