"""bench/gpu without a GPU: every step but the build on a model of 14 MB; what it decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import build as gpu_build
from bench.gpu import check as gpu_check
from bench.gpu import facts as gpu_facts
from bench.gpu import link as gpu_link
from bench.gpu import measure as gpu_measure
from bench.gpu.job import Job
from bench.gpu.model import REAL, TINY, Routing, fitting, plan, write_model
from bench.gpu.steps import STEPS
from dotscli.hot.model_cost import file_cost
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf
from tests.hot_devices import compiler

ROOT = Path(__file__).resolve().parents[1]


def test_every_step_runs_and_is_done_afterwards(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "bench.gpu", "all", "--device", "CPU", "--size", "tiny",
        "--installed", "--threads", "1", "--budgets", "50", "0", "--work", str(tmp_path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(tmp_path / "data")}
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "gpu.md").read_text()
    for side in ("no expert on the device", "one expert a layer", "stock, whole layers",
                 "hot, static", "hot, adaptive"):  # fmt: skip
        assert side in text
    assert "not measured" not in text
    assert "NO" not in text  # all sides compute what the CPU computes
    assert text.count("61 of 61") == 5  # and all of them answer right
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [run["key"] for run in runs] == [
        "guard/50",
        "0/50/stock",
        "0/50/static",
        "0/50/adaptive",
        "upload/50",
        "streaming/50",
        "guard/0",
        "0/0/stock",
        "0/0/static",
        "upload/0",
        "streaming/0",
    ]
    by_key = {run["key"]: run for run in runs}
    assert by_key["0/50/static"]["hot"]["resident_experts"] == 80
    assert by_key["0/0/static"]["hot"]["resident_experts"] == 5
    assert by_key["streaming/50"]["never"]["streamed_nbytes"] == 0
    assert by_key["streaming/50"]["always"]["streamed_nbytes"] > 0
    command[3] = "status"
    status = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=env, check=True
    ).stdout
    assert status.count("| yes |") == 7  # a report is written anew each time


def test_a_step_that_fails_or_hangs_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleeping(name: str, seconds: float, status: int) -> subprocess.Popen[bytes]:
        ran.append(name)
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import time; time.sleep({seconds}); raise SystemExit({status})",
            ],
            start_new_session=True,
        )

    ran: list[str] = []
    does = {"build": (0, 0), "model": (0, 0), "nano": (0, 1), "link": (60, 0)}
    monkeypatch.setattr(gpu, "start", lambda _job, name: sleeping(name, *does.get(name, (0, 0))))
    monkeypatch.setattr(gpu, "STEPS", {n: replace(s, limit_s=2) for n, s in STEPS.items()})
    options = gpu.arguments().parse_args(["all", "--quick", "--work", str(tmp_path)])
    options.keep, options.size = tmp_path, "tiny"
    assert gpu.run_all(Job(options, time.monotonic() + 300)) == 1
    assert ran == list(STEPS)


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    kept = tmp_path / "runs.jsonl"
    kept.write_text('{"key": "0/0/stock"}\n{"key": "0/10/st')
    assert list(gpu_measure.results_of(kept)) == ["0/0/stock"]
    plan = gpu_measure.Plan("CPU", budgets=(0, 10), rounds=1)
    missing = gpu_measure.missing(plan, kept)
    assert "0/0/stock" not in missing[0]
    assert "0/10/stock" in missing[10]


def test_stock_gets_the_memory_of_the_hot_experts(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, TINY, Routing())
    cost = file_cost(read_gguf(path))
    for percent in (10, 25, 50, 75):
        found = gpu_measure.placement(cost, 512, percent)
        assert found.dense_on_device
        assert found.device.experts <= cost.experts_nbytes * percent / 100
        assert found.device.experts > cost.experts_nbytes * percent / 100 - 2 * 69120
        on_device = 6 - found.engine_options(hot=False).n_cpu_moe  # whole layers, rounded down
        assert on_device == 5 * percent // 100


def test_the_model_is_what_quantize_would_write(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, TINY, Routing())
    found = read_gguf(path)
    check_dots1(found)
    wanted = [(t.name, t.type.name, t.nbytes) for t in plan(TINY)]
    assert [(t.name, t.type_name.upper(), t.nbytes) for t in found.tensors] == wanted


@pytest.mark.parametrize("gigabytes", [20, 40, 60])
def test_a_model_has_as_many_layers_as_fit(gigabytes: int) -> None:
    def nbytes(n_layers: int) -> int:
        return sum(t.nbytes for t in plan(replace(REAL, layers=n_layers)))

    n_layers = fitting(REAL, gigabytes * 10**9).layers
    assert nbytes(n_layers) <= gigabytes * 10**9 < nbytes(n_layers + 2)


def test_a_stream_stays_in_its_topic() -> None:
    stays = [
        np.mean(np.diff(np.array(Routing(memory=memory).stream(2000, 4096, seed=0)) % 32) == 0)
        for memory in (0.0, 0.95)
    ]
    assert stays[0] < 0.1
    assert stays[1] > 0.9


def test_logits_that_differ_are_found() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((100, 50)).astype(np.float32)
    assert gpu_check.compare("nano", "same", logits, logits).good
    assert gpu_check.compare("nano", "close", logits, logits + 1e-4).good
    assert not gpu_check.compare("nano", "other", logits, logits[::-1]).good
    assert not gpu_check.compare("synthetic", "nan", logits, np.full_like(logits, np.nan)).good


def test_a_cuda_without_cublas_takes_it_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit, package = tmp_path / "cuda", tmp_path / "site" / "nvidia" / "cu13"
    for folder in (toolkit / "bin", toolkit / "include", package / "include", package / "lib"):
        folder.mkdir(parents=True)
    (toolkit / "bin" / "nvcc").touch(0o755)
    for name in ("include/cublas_v2.h", "lib/libcublas.so.13", "lib/libcublasLt.so.13"):
        (package / name).touch()
    monkeypatch.setattr(gpu_build, "_toolkit", lambda: [toolkit / "bin"])
    monkeypatch.setattr(gpu_build, "DRIVER_FOLDERS", ())
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match="nvidia-cublas"):
        gpu_build.cuda_options("90")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    options = gpu_build.cuda_options("90")
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in options
    assert f"-DCUDA_cublas_LIBRARY={package / 'lib' / 'libcublas.so.13'}" in options
    assert "-DGGML_CUDA_NO_VMM=on" in options  # no driver to link with


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    trace = tmp_path / "stopped"
    script = f"trap 'touch {trace}; exit 130' INT; sleep 30 & wait"
    assert not gpu_build.run_until(["bash", "-c", script], dict(os.environ), 0.0)
    assert trace.exists()
    assert gpu_build.run_until(["true"], dict(os.environ), 0.0)


def test_the_link_is_measured_without_llama_cpp(tmp_path: Path) -> None:
    command = compiler()
    assert command, "no C++ compiler"
    source = ROOT / "tests" / "native" / "cudart.cpp"
    runtime = tmp_path / "libcudart.so.13"
    subprocess.run([command, "-shared", "-fPIC", "-o", str(runtime), str(source)], check=True)
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(range(256)) * (gpu_link.ROOM // 256 + 1))
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.link", "--file", str(model), "--amount", "1"],
        cwd=ROOT, capture_output=True, env=env, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found["to_device_pinned"]) == {str(size) for size in gpu_link.SIZES}
    assert all(rate > 0 for rate in found["staged_alternating"].values())
    assert found["small_copy_s"]["0"]["median"] <= found["small_copy_s"]["0"]["largest"]
    text = "\n".join(gpu_facts.linked(found))
    assert "256 KiB" in text and "64 MiB" in text
