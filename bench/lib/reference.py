"""The reference: llama.cpp's own tools, built from the llama-cpp-python source distribution.

Every figure and every "equal bytes" claim of this project is against the llama.cpp that the
engine itself runs, so both come from one source distribution: it carries llama.cpp complete,
with its tools and its converter. This script fetches it with pip, builds the tools with cmake
in a cache folder and tells the other bench scripts where they are. Nothing built here is
shipped or imported by dotscli.

    python -m bench.lib.reference            # fetch, build, print the paths (5 to 20 minutes, once)

Needs: pip, cmake >= 3.21, a C++ compiler, about 1 GB in the cache folder. CMAKE_ARGS is added
to the options: set it as it was when llama-cpp-python was installed. The converter also needs
torch and transformers, in this or in another Python (see --converter-python of the scripts that
run it).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

LLAMA_CPP_PYTHON = "0.3.36"
TOOLS = ("llama-quantize", "llama-bench", "llama-completion", "llama-imatrix", "llama-perplexity")

# What llama-cpp-python's own CMakeLists sets on Linux with CMAKE_ARGS="-DGGML_RPC=on":
# GGML_NATIVE stays at its default (on), so tools and engine have the same CPU kernels.
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DGGML_RPC=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)


@dataclass(frozen=True)
class Reference:
    """Where the unpacked source and the built tools are."""

    source: Path
    build: Path

    @property
    def converter(self) -> Path:
        """convert_hf_to_gguf.py; it finds its own gguf-py beside itself."""
        return self.source / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"

    def tool(self, name: str) -> Path:
        """The path of one built tool; SystemExit with the command to run if it isn't there."""
        path = self.build / "bin" / name
        if not path.exists():
            raise SystemExit(f"{path} is not built; run: python -m bench.lib.reference")
        return path


def cache_folder() -> Path:
    """DOTS_BENCH_CACHE, else ~/.cache/dotscli-bench. Holds source, build and vocabulary."""
    return Path(os.environ.get("DOTS_BENCH_CACHE") or Path.home() / ".cache" / "dotscli-bench")


def reference(cache: Path | None = None) -> Reference:
    """The reference in the cache folder, built or not; see Reference.tool."""
    cache = cache or cache_folder()
    name = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
    return Reference(source=cache / name, build=cache / f"{name}-build")


def fetch(cache: Path) -> Path:
    """Download the source distribution with pip and unpack it; returns the folder.

    pip asks the package for its metadata, hence for its build backend; only this one package
    is forced to be a source distribution, the backend may come as a wheel.
    """
    folder = reference(cache).source
    if (folder / "vendor" / "llama.cpp" / "CMakeLists.txt").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    requirement = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            requirement,
            "-d",
            str(cache),
        ],
        check=True,
    )
    archive = cache / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
    with tarfile.open(archive) as tar:
        # The data filter (refuses links and paths that leave the folder) came in 3.10.12.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(cache, filter="data")
        else:
            raise SystemExit(f"this Python can't unpack safely; unpack {archive} into {cache}")
    return folder


def build(cache: Path, jobs: int, tools: tuple[str, ...] = TOOLS) -> Reference:
    """Configure and build the named tools; a finished build is only checked by cmake."""
    where = reference(cache)
    llama_cpp = where.source / "vendor" / "llama.cpp"
    # As llama-cpp-python's own build does, so that tools and engine can be built alike.
    extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    subprocess.run(
        ["cmake", "-S", str(llama_cpp), "-B", str(where.build), *CMAKE_OPTIONS, *extra], check=True
    )
    subprocess.run(
        ["cmake", "--build", str(where.build), "--parallel", str(jobs), "--target", *tools],
        check=True,
    )
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache_folder(),
        help="cache folder (default: DOTS_BENCH_CACHE or %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compiler processes")
    parser.add_argument("--fetch-only", action="store_true", help="source and converter, no build")
    options = parser.parse_args()
    fetch(options.cache)
    where = reference(options.cache)
    if not options.fetch_only:
        build(options.cache, options.jobs)
        for tool in TOOLS:
            print(where.tool(tool))
    print(where.converter)


if __name__ == "__main__":
    main()
