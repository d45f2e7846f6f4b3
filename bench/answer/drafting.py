"""Tokens guessed ahead (--draft): what a batch of a few costs, and what guessing gains.

    python -m bench.answer.drafting MODEL.gguf --out docs/bench/drafting.md

The model may be of random weights: every answer is given, token by token, as if the model had
drawn it, so that guesses come true as often as they would in that text, and everything else is
computed as always, the sampling included. The texts are this project's own. Off, auto and 4 tokens
run in turn; a first round isn't counted.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bench.lib.measure import ROOT, note, ratios, spread, table, warm, write_report
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampler import Sampler
from dotscli.engine.sampling import Sampling

SIDES: dict[str, int | None] = {"off": 0, "auto": None, "4": 4}
N_PROMPT, N_ANSWER = 1200, 300  # tokens at most
BATCHES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Task:
    """A prompt and the answer that it gets."""

    name: str
    prompt: str
    answer: str


def tasks() -> list[Task]:
    """Editing, summarising, JSON and talk."""
    code = (ROOT / "dotscli/engine/draft.py").read_text("utf-8")
    edited = re.sub(r"\blookup\b", "finder", code).replace("Lookup", "Finder")
    readme = (ROOT / "README.md").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n- ")[1:]
    rows = re.findall(r"^\| `([a-z/_.]+)` \| (.*) \|$", _read("docs/architecture.md"), re.M)[:40]
    lines = "\n".join(f"{name}: {what}" for name, what in rows)
    records = "".join(f'  {{"file": "{name}", "subject": "{what}"}},\n' for name, what in rows)
    return [
        Task("editing code", f"Rename Lookup to Finder:\n\n{code}", edited),
        Task("summarising", f"Summarise:\n\n{readme[:6000]}", "\n- ".join(changes[-12:])),
        Task("JSON", f"As JSON, please:\n{lines}", f"[\n{records}]"),
        Task("talk", "What is dots?", readme[2000:5000]),
    ]


def _read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warm([options.model])
    with Engine.load(options.model, EngineOptions(n_ctx=4096)) as engine:
        costs = _costs(engine, options.rounds)
        rows = [_row(engine, task, options.rounds) for task in tasks()]
    header = ["answer", *(f"{side}, tok/s" for side in SIDES), "auto, of off", "4, of off",
              "guesses that came true, auto", "4"]  # fmt: skip
    text = (
        f"{options.model.name}: prompts of {N_PROMPT} tokens and answers of {N_ANSWER} at most; "
        f"{options.rounds} rounds, medians (range). Same bits: {not engine.drafting.differs}."
    )
    batch = table(["tokens at once", "of one"], [[str(n), spread(c)] for n, c in costs.items()])
    sections = [text, batch, table(header, rows)]
    if options.out:
        write_report(options.out, "Guessing tokens ahead", sections)
    else:
        print("\n\n".join(sections))


def _costs(engine: Engine, rounds: int) -> dict[int, list[float]]:
    """Seconds of a batch over those of a single token."""
    decoder = engine._decoder
    tokens = engine.tokenize(tasks()[0].prompt, parse_special=False)
    decoder.settle()
    decoder.keep(0)
    decoder.prefill(tokens[:200], None)
    found: dict[int, list[float]] = {n: [] for n in BATCHES}
    for n_round in range(rounds + 1):
        seconds = {}
        for n in BATCHES:
            decoder.keep(200)
            seconds[n] = _timed(lambda n=n: decoder.decode_ahead(tokens[200 : 200 + n]), 4)
        if n_round:
            for n in BATCHES:
                found[n].append(seconds[n] / seconds[1])
    return found


def _timed(work: Callable[[], None], times: int) -> float:
    from time import perf_counter

    taken = []
    for _ in range(times):
        began = perf_counter()
        work()
        taken.append(perf_counter() - began)
    return statistics.median(taken)


def _row(engine: Engine, task: Task, rounds: int) -> list[str]:
    prompt = engine.tokenize(task.prompt, parse_special=False)[:N_PROMPT]
    answer = engine.tokenize(task.answer, parse_special=False)[:N_ANSWER]
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    shares: dict[str, list[float]] = {side: [] for side in SIDES}
    for n_round in range(rounds + 1):
        for side, length in SIDES.items():
            speed, share = _answered(engine, prompt, answer, length)
            if n_round:
                speeds[side].append(speed)
                shares[side].append(share)
    note(f"  {task.name}: {speeds} {shares}")
    return [
        task.name, *(spread(speeds[side]) for side in SIDES),
        spread(ratios(speeds["auto"], speeds["off"])), spread(ratios(speeds["4"], speeds["off"])),
        f"{statistics.median(shares['auto']):.0%}", f"{statistics.median(shares['4']):.0%}",
    ]  # fmt: skip


def _answered(
    engine: Engine, prompt: list[int], answer: list[int], length: int | None
) -> tuple[float, float]:
    """Tokens per second of a given answer, and the part of its guesses that came true."""
    given = iter(answer)
    real = Sampler.sample

    def sample(self: Sampler, row: int = -1) -> int:
        real(self, row)  # what it costs is paid
        return next(given)

    with mock.patch.object(Sampler, "sample", sample):
        pieces = engine.generate(
            prompt, Sampling(temp=0.8, seed=1), n_predict=len(answer), draft=length,
            repeatable=False,
        )  # fmt: skip
        *_, last = pieces
    stats = last.stats
    assert stats is not None
    assert stats.completion_tokens == len(answer)
    return stats.decode_tps, stats.accepted_tokens / max(1, stats.drafted_tokens)


if __name__ == "__main__":
    main()
