"""What bench/gpu does, step by step: each keeps its result, and is done when that is there.

Steps run in processes of their own (__main__.py) and know each other by their files alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.gpu import build as gpu_build
from bench.gpu.job import Job
from bench.lib.measure import ROOT, dots, note

if TYPE_CHECKING:
    from bench.gpu.measure import Plan

MIN_FREE = 2 << 30  # left on the disk
TINY_PLAN = {"prefill": (32, 64), "warm": 4, "decode": 8, "rounds": 1}
QUICK_PLAN = {"prefill": (512,), "warm": 32, "decode": 96}
AUTO_BUDGET = 25  # per cent of the experts for which the GPU is made too small
NANO = ROOT / "models" / "nano"
NANO_THREADS = 2  # of each process: several run at once
STOP_S = 3.0  # before the step's own end, so that what it has is kept


def build(job: Job) -> bool:
    options = job.options
    if options.wheels:
        gpu_build.install(job.site, sorted(options.wheels.glob("*.whl")), job.env)
    else:
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
    n_tokens = 256 if job.tiny else 512 if job.options.quick else 1024
    make(job.model, shape, routing, n_tokens, job.threads)
    return True


def nano(job: Job) -> bool:
    """Logits on every placement, and answers; all at once, since nothing of it is timed."""
    from bench.gpu import check as gpu_check
    from bench.gpu import nano as gpu_nano

    gguf = job.work / "nano.gguf"
    facts = said([*dots(), "doctor", "--json"], job.env)
    if not gguf.exists():
        said([*dots(), "quantize", str(NANO), "-o", str(gguf)], job.env)
    n_threads = job.options.threads or NANO_THREADS
    commands = [
        [sys.executable, "-m", "bench.gpu.nano", str(gguf), side, job.options.device,
         "--threads", str(n_threads)]
        for side in gpu_nano.SIDES
    ]  # fmt: skip
    found: dict[str, Any] = {"doctor": json.loads(facts)}
    failed = []
    with ThreadPoolExecutor(gpu_check.at_once(n_threads)) as pool:
        envs = [gpu_build.hidden(job.env) if s == "cpu" else job.env for s in gpu_nano.SIDES]
        runs = [pool.submit(said, *each) for each in zip(commands, envs, strict=True)]
        for side, run in zip(gpu_nano.SIDES, runs, strict=True):
            try:
                found[side] = json.loads(run.result())
            except RuntimeError as error:
                found[side] = {"error": str(error)}
                failed.append(side)
                continue
            answers = found[side]["answers"]
            n_right = sum(answer["right"] for answer in answers)
            note(f"  {side}: {n_right} of {len(answers)} answers are right")
    job.result("nano").write_text(json.dumps(found))
    verdicts = gpu_check.check_nano(gguf, job.options.device, n_threads, job.env)
    found["verdicts"] = [asdict(verdict) for verdict in verdicts]
    job.result("nano").write_text(json.dumps(found))
    wrong = [v for v in verdicts if not v.good]
    if failed or wrong:
        raise SystemExit(f"failed: {', '.join(failed)}; differ from the CPU: {wrong}")
    return True


def link(job: Job) -> bool:
    text = said([sys.executable, "-m", "bench.gpu.link", "--file", str(job.model)], job.env)
    job.result("link").write_text(text)
    return True


def asked(job: Job) -> Plan:
    """The measurement as the options say."""
    from bench.gpu.measure import BUDGETS, Plan

    changes: dict[str, Any] = {"rounds": job.options.rounds}
    changes |= TINY_PLAN if job.tiny else QUICK_PLAN if job.options.quick else {}
    budgets = tuple(job.options.budgets or BUDGETS)
    return Plan(job.options.device, budgets, n_threads=job.options.threads, **changes)


def planned(job: Job) -> Plan:
    """The same without the budgets that the device can't hold."""
    from bench.gpu.measure import needed_nbytes

    plan, free = asked(job), free_bytes(job)
    kept = tuple(
        b for b in plan.budgets if free is None or needed_nbytes(job.model, plan, b) <= free
    )
    if left_out := set(plan.budgets) - set(kept):
        note(f"  {plan.device} can't hold {', '.join(f'{b} %' for b in sorted(left_out))}")
    return replace(plan, budgets=kept)


def free_bytes(job: Job) -> int | None:
    """What the device has, asked of another process so that this one uses none of it."""
    facts = json.loads(said([*dots(), "doctor", "--json"], job.env))
    names = [device["name"] for device in facts["devices"]]
    if job.options.device not in names:
        raise SystemExit(f"llama.cpp has no device {job.options.device}, only {', '.join(names)}")
    [found] = [d for d in facts["devices"] if d["name"] == job.options.device]
    return None if found["type"] == "CPU" else int(found["free_bytes"])


def measure(job: Job) -> bool:
    from bench.gpu.measure import run

    return run(job.model, planned(job), job.runs, job.env, job.end - STOP_S)


def auto(job: Job) -> bool:
    from bench.gpu.measure import placement
    from dotscli.hot.model_cost import file_cost
    from dotscli.models.gguf_file import read_gguf

    plan = planned(job)
    placed = placement(file_cost(read_gguf(job.model)), plan.n_ctx, AUTO_BUDGET)
    command = [sys.executable, "-m", "bench.gpu.auto", str(job.model)]
    command += ["--leave", str(placed.request.device_nbytes), "--ctx-size", str(plan.n_ctx)]
    command += ["--n-cpu-moe", str(placed.engine_options(hot=False).n_cpu_moe)]
    job.result("auto").write_text(said(command, job.env))
    return True


def check(job: Job) -> bool:
    from bench.gpu import check as gpu_check

    free = free_bytes(job)
    whole = free is None or job.model.stat().st_size + MIN_FREE < free
    found = gpu_check.check_synthetic(
        job.model, job.options.device, whole, job.options.threads, job.env
    )
    job.result("check").write_text(json.dumps([asdict(verdict) for verdict in found]))
    if bad := [verdict for verdict in found if not verdict.good]:
        raise SystemExit("\n".join(f"differs from the CPU: {verdict}" for verdict in bad))
    return True


def report(job: Job) -> bool:
    from bench.gpu.report import sections
    from bench.lib.measure import write_report

    write_report(job.options.out, "Hot experts on a GPU", sections(job, asked(job)))
    return True


def measured(job: Job) -> bool:
    if not job.runs.exists() or not job.model.exists():
        return False
    from bench.gpu.measure import missing

    return not missing(asked(job), job.runs)


def said(command: list[str], env: dict[str, str]) -> str:
    """What a command prints; its stderr goes through.

    Raises:
        RuntimeError: it fails; with what it said last.
    """
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Step:
    """What it costs is said beforehand; `done` looks at what is kept.

    Attributes:
        limit_s: seconds that it may take of a quick call; other calls give it twenty times that.
        beside: it runs while the next steps do, up to the first that needs the model.
        with_model_beside: it may run meanwhile.
    """

    run: Callable[[Job], bool]
    done: Callable[[Job], bool]
    costs: str
    limit_s: float
    beside: bool = False
    with_model_beside: bool = False


def kept(name: str) -> Callable[[Job], bool]:
    return lambda job: job.result(name).exists()


STEPS = {
    "build": Step(
        build,
        lambda job: job.options.installed or (job.work / "built").exists(),
        "5 to 30 minutes of 16 cores, 2 GB",
        60,
    ),
    "model": Step(
        model,
        lambda job: job.model.with_suffix(".json").exists(),
        "1 to 5 minutes, --size on the disk",
        120,
        beside=True,
    ),
    "nano": Step(nano, kept("nano"), "a minute", 90, with_model_beside=True),
    "link": Step(
        link,
        lambda job: job.options.device == "CPU" or job.result("link").exists(),
        "seconds",
        30,
    ),
    "measure": Step(measure, measured, "half a minute to 4 minutes a budget", 230),
    "auto": Step(
        auto,
        lambda job: job.options.device == "CPU" or job.result("auto").exists(),
        "a minute",
        60,
    ),
    "check": Step(check, kept("check"), "1 to 5 minutes", 60),
    "report": Step(report, lambda job: False, "seconds", 20),
}
