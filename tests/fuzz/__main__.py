"""The command line: `python -m tests.fuzz` attacks every target in turn and prints a table.

`--replay FILE` runs one input of the corpus, `--minimise FILE` makes it smaller.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.child import MAX_NBYTES, MAX_SECONDS
from tests.fuzz.minimise import minimise
from tests.fuzz.runner import CORPUS, Result, fuzz, replay, write_input
from tests.fuzz.target import TARGETS

COLUMNS = "target", "inputs", "per s", "crashes", "hangs", "over 1 GB", "peak MiB", "slowest s"


def main() -> int:
    """The exit status: 1 if anything was found."""
    options = _options()
    if options.minimise:
        minimise(options.minimise)
        return 0
    results = _replayed(options.replay) if options.replay else _campaign(options)
    print("\n" + table(results))
    return int(any(result.findings for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9 % 10**8)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--minimise", type=Path, metavar="FILE")
    return parser.parse_args()


def _campaign(options: argparse.Namespace) -> list[Result]:
    seconds = options.minutes * 60 / len(options.targets)
    print(f"seed {options.seed}, {seconds:.0f} s for each of {len(options.targets)} targets")
    results = []
    for target in options.targets:
        known = sorted((CORPUS / target).glob("*.*"))
        result = replay(target, known) if known else Result(target)
        _say(result, "the corpus")
        found = fuzz(target, options.seed, seconds)
        for name, finding in found.findings.items():
            if finding.data and name not in result.findings:
                print(f"  kept: {write_input(finding, target)}")
        _say(found, f"seed {options.seed}")
        for finding in result.findings.values():
            found.add(finding)
        found.n_inputs += result.n_inputs
        results.append(found)
    return results


def _replayed(paths: list[Path]) -> list[Result]:
    results = []
    for target in sorted({path.resolve().parent.name for path in paths}):
        results.append(replay(target, [p for p in paths if p.resolve().parent.name == target]))
        _say(results[-1], "the files given")
    return results


def _say(result: Result, origin: str) -> None:
    print(f"{result.target}: {result.n_inputs} inputs of {origin}", flush=True)
    for finding in result.findings.values():
        repeats = "" if finding.repeats else " (not when run alone)"
        print(f"  {finding.name}: {finding.hits} times, input {finding.number}{repeats}")
        for line in finding.text.strip().splitlines()[-12:]:
            print(f"      {line[:200]}")


def table(results: list[Result]) -> str:
    """One row per target and what they come to."""
    rows = [COLUMNS, *(_row(result) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    n_inputs = sum(result.n_inputs for result in results)
    n_findings = sum(len(result.findings) for result in results)
    limits = f"limits: {MAX_SECONDS:g} s and {MAX_NBYTES >> 20} MiB for an input"
    return "\n".join([*lines, f"{n_inputs} inputs, {n_findings} findings; {limits}"])


def _row(result: Result) -> tuple[str, ...]:
    kinds = [finding.kind for finding in result.findings.values()]
    return (
        result.target,
        str(result.n_inputs),
        f"{result.n_inputs / max(result.seconds, 1e-9):.0f}",
        str(sum(kind in ("exception", "wrong", "death") for kind in kinds)),
        str(kinds.count("hang")),
        str(kinds.count("memory")),
        f"{result.peak_nbytes / (1 << 20):.0f}",
        f"{result.slowest_s:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
