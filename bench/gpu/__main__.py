"""Hot experts on a GPU, unattended: build, model, measurement, check and report, step by step.

    python -m bench.gpu all                       # every step that isn't done, in order
    python -m bench.gpu status                    # what is done and what is left
    python -m bench.gpu all --device CPU --size tiny --installed      # a rehearsal without a GPU

For a machine without network, on one that has it and then there:

    python -m bench.gpu pack --python 3.12 --pack FOLDER
    python -m bench.gpu all --pack FOLDER

A step stops after --minutes at the latest and keeps what it has in --work; the same command goes on
there. Exit status 0: done; 3: call it again; 1: something is wrong.

    pack     source and wheels for a machine without network; not part of all
    build    llama-cpp-python for the GPU that is here, and dots: 5 to 30 minutes of 16 cores
    model    a synthetic model of --size, its heat and its routing: as fast as the disk goes
    measure  budgets of 10, 25, 50 and 75 % of the experts' bytes: stock, static, adaptive
    check    logits against the CPU
    report   docs/bench/gpu.md
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gpu import build as gpu_build
from bench.lib.measure import ROOT, note, table, write_report
from bench.lib.reference import cache_folder

MIN_FREE = 2 << 30  # left on the disk
TINY_PLAN = {"prefill": (32, 64), "warm": 4, "decode": 8, "repeats": 1, "rounds": 1}
AGAIN = 3


@dataclass(frozen=True)
class Job:
    """The options, and where each step keeps what it has done."""

    options: argparse.Namespace
    end: float

    @property
    def work(self) -> Path:
        return Path(self.options.work)

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def model(self) -> Path:
        return self.work / "model.gguf"

    @property
    def runs(self) -> Path:
        return self.work / "runs.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.work / "check.json"

    @property
    def env(self) -> dict[str, str]:
        return gpu_build.environment(self.site)

    @property
    def tiny(self) -> bool:
        return bool(self.options.size == "tiny")

    @property
    def threads(self) -> int:
        return int(self.options.threads) or os.cpu_count() or 1

    @property
    def budgets(self) -> tuple[int, ...]:
        return tuple(self.options.budgets)


def build(job: Job) -> bool:
    options = job.options
    if options.installed:
        return True
    job.work.mkdir(parents=True, exist_ok=True)
    arch = None
    if options.device != "CPU":
        arch = options.arch or gpu_build.gpu_arch()
    if not gpu_build.build(job.work, job.site, options.pack, arch, job.end):
        return False
    (job.work / "built").touch()
    return True


def model(job: Job) -> bool:
    import psutil

    from bench.gpu.model import REAL, TINY, Routing, fitting, make
    from dotscli.options.sizes import size_of

    job.work.mkdir(parents=True, exist_ok=True)
    shape = TINY
    if not job.tiny:
        nbytes = size_of(job.options.size)
        if nbytes is None:
            raise SystemExit(f"--size is {job.options.size}: give tiny or a size such as 40G")
        disk, ram = psutil.disk_usage(str(job.work)).free, psutil.virtual_memory().total
        if not job.model.exists() and nbytes + MIN_FREE > disk:
            raise SystemExit(f"{job.work} has {disk / 1e9:.0f} GB free: give a smaller --size")
        if nbytes > 0.8 * ram:
            note(f"  {ram / 1e9:.0f} GB of memory don't hold the model: the disk is measured too")
        shape = fitting(REAL, nbytes)
    routing = Routing(job.options.skew, job.options.topic, job.options.memory)
    make(job.model, shape, routing, 256 if job.tiny else 1024, job.threads)
    return True


def planned(job: Job):  # type: ignore[no-untyped-def]  # its class needs what build installs
    """The measurement: budgets that the device can hold."""
    from bench.gpu.measure import Plan, needed_nbytes

    changes = TINY_PLAN if job.tiny else {"rounds": job.options.rounds}
    plan = Plan(job.options.device, job.budgets, n_threads=job.options.threads, **changes)
    free = free_bytes(job)
    kept = tuple(
        b for b in plan.budgets if free is None or needed_nbytes(job.model, plan, b) <= free
    )
    if left_out := set(plan.budgets) - set(kept):
        note(f"  {plan.device} can't hold {', '.join(f'{b} %' for b in sorted(left_out))}")
    return Plan(**{**asdict(plan), "budgets": kept})


def free_bytes(job: Job) -> int | None:
    """What the device has, asked of another process so that this one uses none of it."""
    from bench.lib.measure import dots, run

    facts = json.loads(run([*dots(), "doctor", "--json"], env=job.env).stdout)
    names = [device["name"] for device in facts["devices"]]
    if job.options.device not in names:
        raise SystemExit(f"llama.cpp has no device {job.options.device}, only {', '.join(names)}")
    [found] = [d for d in facts["devices"] if d["name"] == job.options.device]
    return None if found["type"] == "CPU" else int(found["free_bytes"])


def measure(job: Job) -> bool:
    from bench.gpu.measure import run

    return run(job.model, planned(job), job.runs, job.env, job.end)


def check(job: Job) -> bool:
    from bench.gpu import check as gpu_check

    free = free_bytes(job)
    whole = free is None or job.model.stat().st_size + MIN_FREE < free
    found = gpu_check.check(
        job.work, job.model, job.options.device, whole, job.options.threads, job.env
    )
    job.verdicts.write_text(json.dumps([asdict(verdict) for verdict in found]))
    if bad := [verdict for verdict in found if not verdict.good]:
        raise SystemExit("\n".join(f"differs from the CPU: {verdict}" for verdict in bad))
    return True


def report(job: Job) -> bool:
    from bench.gpu.check import Verdict
    from bench.gpu.report import sections

    verdicts = [Verdict(**entry) for entry in json.loads(job.verdicts.read_text())]
    parts = sections(job.model, planned(job), job.runs, verdicts)
    write_report(job.options.out, "Hot experts on a GPU", parts)
    return True


def measured(job: Job) -> bool:
    from bench.gpu.measure import cells, results_of

    have = results_of(job.runs)
    return job.runs.exists() and all(cell.key in have for cell in cells(planned(job)))


@dataclass(frozen=True)
class Step:
    """What it costs is said beforehand; `done` looks at what is kept."""

    run: Callable[[Job], bool]
    done: Callable[[Job], bool]
    costs: str


STEPS = {
    "build": Step(
        build,
        lambda job: job.options.installed or (job.work / "built").exists(),
        "5 to 30 minutes of 16 cores, 2 GB",
    ),
    "model": Step(
        model,
        lambda job: job.model.with_suffix(".json").exists(),
        "1 to 5 minutes, --size on the disk",
    ),
    "measure": Step(measure, measured, "about a minute a process, 13 processes a round"),
    "check": Step(check, lambda job: job.verdicts.exists(), "2 to 5 minutes"),
    "report": Step(report, lambda job: False, "seconds"),
}


def status(job: Job) -> str:
    rows = []
    for name, step in STEPS.items():
        if not rows or rows[-1][1] == "yes":
            rows.append([name, "yes" if step.done(job) else "no", step.costs])
        else:
            rows.append([name, "no", step.costs])
    return table(["step", "done", "costs"], rows)


def in_site(job: Job) -> None:
    """Start over with what was built: its libraries are found through the environment alone."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if job.options.installed or str(job.site) in inherited:
        return
    left = max(0.0, job.end - time.monotonic()) / 60
    command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:], "--minutes", f"{left:.2f}"]
    os.execve(sys.executable, command, job.env)


def main() -> int:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["all", "status", "pack", *STEPS])
    parser.add_argument("--work", type=Path, help="folder (default: in the cache folder)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, at most")
    parser.add_argument("--device", default="CUDA0", help="CPU rehearses")
    parser.add_argument("--installed", action="store_true", help="build nothing, use what is there")
    parser.add_argument("--pack", type=Path, help="folder that `pack` fills and `build` takes from")
    parser.add_argument("--python", default="3.12", help="version there, for pack")
    parser.add_argument("--have", nargs="*", default=[], help="packages already there, for pack")
    parser.add_argument("--limit", type=int, default=60, help="MB that pack may fill")
    parser.add_argument("--arch", help="such as 90 (default: that of the GPU here)")
    parser.add_argument("--size", default="40G", help="of the model, or tiny")
    parser.add_argument("--skew", type=float, default=0.5)
    parser.add_argument("--topic", type=float, default=0.5)
    parser.add_argument("--memory", type=float, default=0.95)
    parser.add_argument("--budgets", type=int, nargs="+", default=(10, 25, 50, 75))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: physical cores")
    parser.add_argument("--out", type=Path, help="the report (default: docs/bench/gpu.md)")
    options = parser.parse_args()
    tiny = "-tiny" if options.size == "tiny" else ""
    options.work = (options.work or cache_folder() / f"gpu{tiny}").resolve()
    rehearsal = options.device == "CPU"
    options.out = options.out or (options.work if rehearsal else ROOT / "docs/bench") / "gpu.md"
    job = Job(options, time.monotonic() + 60 * options.minutes)

    if options.step == "pack":
        folder = options.pack or options.work / "pack"
        gpu_build.pack(folder, options.limit * 10**6, options.python, options.have)
        return 0
    names = list(STEPS) if options.step in ("all", "status") else [options.step]
    if names != ["build"] and STEPS["build"].done(job):
        in_site(job)
    if options.step == "status":
        print(status(job))
        return 0
    for name in names:
        step = STEPS[name]
        if step.done(job):
            note(f"{name}: done")
            continue
        note(f"{name}: {step.costs}")
        start = time.monotonic()
        if not step.run(job):
            note(f"{name}: not finished, call it again")
            return AGAIN
        note(f"{name}: done in {time.monotonic() - start:.0f} s")
        if name == "build" and options.step == "all":
            in_site(job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
