"""Hot experts on a GPU, unattended: build, model, measurement, check and report, step by step.

    python -m bench.gpu all                       # every step that isn't done, in order
    python -m bench.gpu status                    # what is done and what is left
    python -m bench.gpu all --quick --wheels FOLDER --minutes 7 --keep FOLDER    # on borrowed time
    python -m bench.gpu all --device CPU --size tiny --installed      # a rehearsal without a GPU

For a machine without network, on one that has it and then there:

    python -m bench.gpu pack --python 3.12 --pack FOLDER
    python -m bench.gpu all --pack FOLDER

The call stops after --minutes at the latest and keeps what it has in --work; the same command goes
on there. A step that fails or takes too long is said and left out, and the others run. Exit status
0: done; 3: call it again; 1: a step failed.

    pack     source and wheels for a machine without network; not part of all
    build    llama-cpp-python for the GPU that is here, and dots: 5 to 30 minutes of 16 cores;
             --wheels installs instead what was built before
    model    a synthetic model of --size, its heat and its routing: as fast as the disk goes;
             made while the nano model is asked
    nano     the nano model's questions and logits on every placement, against the CPU
    link     copies to the GPU by size and staging, without llama.cpp
    measure  budgets of the experts' bytes from 0 to 100 %: stock, static, adaptive
    auto     `dots prompt` on a GPU that something else has filled
    check    the synthetic model's logits against the CPU
    report   docs/bench/gpu.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu import build as gpu_build
from bench.gpu.job import Job
from bench.gpu.steps import STEPS
from bench.lib.measure import ROOT, note, table
from bench.lib.reference import cache_folder

AGAIN = 3
LAST, LAST_S = "report", 8  # seconds of a call that are kept for it
SLOW = 20  # times what a quick call gives a step
QUICK_SIZE, SIZE = "14G", "40G"
MINUTES = 40.0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["all", "status", "pack", *STEPS])
    parser.add_argument("--work", type=Path, help="folder (default: in the cache folder)")
    parser.add_argument("--keep", type=Path, help="folder for results (default: --work)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of this call, at most")
    parser.add_argument("--device", default="CUDA0", help="CPU rehearses")
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer tokens")
    parser.add_argument("--installed", action="store_true", help="build nothing, use what is there")
    parser.add_argument("--wheels", type=Path, help="folder: build nothing, install what is there")
    parser.add_argument("--pack", type=Path, help="folder that `pack` fills and `build` takes from")
    parser.add_argument("--python", default="3.12", help="version there, for pack")
    parser.add_argument("--have", nargs="*", default=[], help="packages already there, for pack")
    parser.add_argument("--limit", type=int, default=60, help="MB that pack may fill")
    parser.add_argument("--arch", help="such as 90 (default: that of the GPU here)")
    parser.add_argument("--size", help=f"of the model, or tiny (default: {SIZE}, or {QUICK_SIZE})")
    parser.add_argument("--skew", type=float, default=0.5)
    parser.add_argument("--topic", type=float, default=0.5)
    parser.add_argument("--memory", type=float, default=0.95)
    parser.add_argument("--budgets", type=int, nargs="+", help="per cent of the experts' bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: physical cores")
    parser.add_argument("--out", type=Path, help="the report (default: docs/bench/gpu.md)")
    return parser


def parsed() -> argparse.Namespace:
    options = arguments().parse_args()
    options.size = options.size or (QUICK_SIZE if options.quick else SIZE)
    tiny = "-tiny" if options.size == "tiny" else ""
    options.work = (options.work or cache_folder() / f"gpu{tiny}").resolve()
    options.keep = (options.keep or options.work).resolve()
    rehearsal = options.device == "CPU" or options.quick
    options.out = options.out or (options.keep if rehearsal else ROOT / "docs/bench") / "gpu.md"
    return options


def status(job: Job) -> str:
    rows = []
    for name, step in STEPS.items():
        before = not rows or rows[-1][1] == "yes"
        rows.append([name, "yes" if before and step.done(job) else "no", step.costs])
    return table(["step", "done", "costs"], rows)


def start(job: Job, name: str) -> subprocess.Popen[bytes]:
    """Begin one step in a process of its own, which finds what `build` has installed."""
    left = max(0.0, job.end - time.monotonic()) / 60
    command = [sys.executable, "-m", "bench.gpu", name, *sys.argv[2:], "--minutes", f"{left:.3f}"]
    return subprocess.Popen(command, env=job.env, start_new_session=True)


def finish(job: Job, name: str, process: subprocess.Popen[bytes], began: float) -> int:
    """Wait for a step as long as it may take; its exit status."""
    limit = began + STEPS[name].limit_s * (1 if job.options.quick else SLOW)
    ends = limit if name == LAST else min(job.end - LAST_S, limit)
    code = gpu_build.wait_until(process, ends)
    took = time.monotonic() - began
    note(f"{name}: {'done' if code == 0 else f'ended with {code}'} after {took:.0f} s")
    return AGAIN if code is None else code


def run_all(job: Job) -> int:
    """Every step that isn't done; one that only needs to be done by later runs beside others."""
    codes = []
    beside: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def join() -> None:
        for name, (process, began) in beside.items():
            codes.append(finish(job, name, process, began))
        beside.clear()

    for name, step in STEPS.items():
        if step.done(job):
            note(f"{name}: done")
            continue
        if not step.with_model_beside:
            join()
        left = job.end - time.monotonic()
        if left < 2 * LAST_S and name != LAST:
            note(f"{name}: no time left")
            codes.append(AGAIN)
            continue
        note(f"{name}: {step.costs}")
        process, began = start(job, name), time.monotonic()
        if step.beside:
            beside[name] = process, began
            continue
        codes.append(finish(job, name, process, began))
        if name == "build" and codes[-1]:
            return codes[-1]
    failed = [code for code in codes if code not in (0, AGAIN)]
    return 1 if failed else max(codes, default=0)


def main() -> int:
    options = parsed()
    job = Job(options, time.monotonic() + 60 * options.minutes)
    if options.step == "pack":
        folder = options.pack or options.work / "pack"
        gpu_build.pack(folder, options.limit * 10**6, options.python, options.have)
        return 0
    job.work.mkdir(parents=True, exist_ok=True)
    job.keep.mkdir(parents=True, exist_ok=True)
    if options.step == "status":
        print(status(job))
        return 0
    if options.step == "all":
        return run_all(job)
    if options.step != "build" and not options.installed and str(job.site) not in sys.path:
        command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:]]
        os.execve(sys.executable, command, job.env)
    step = STEPS[options.step]
    return 0 if step.done(job) or step.run(job) else AGAIN


if __name__ == "__main__":
    sys.exit(main())
