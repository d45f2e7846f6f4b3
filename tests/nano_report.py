"""What the nano model's README reports: answers, sums and routing, measured through the engine.

    python -m tests.nano_report [--type q4]

Asks fresh questions (drawn with a seed that no training run uses), every held-out sum and as many
seen ones, and prints how far apart the experts of two kinds of text are. Takes minutes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.models.nano.arithmetic import answer, held_out
from dotscli.models.nano.text import render, talks
from tests.nano_reference import NANO, Reference, apart, texts_by_domain, usage

FRESH_SEED = 424_242
N_SUMS = 300


def reply(engine: Engine, prompt: str) -> tuple[str, str | None]:
    """Greedy answer to a rendered prompt, and why it ended."""
    tokens = engine.tokenize(prompt, parse_special=True)
    pieces = list(engine.generate(tokens, Sampling(temp=0), n_predict=200))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def fresh(engine: Engine, count: int) -> None:
    """Share of first answers that are exactly the taught ones, by domain."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    stopped = 0
    for talk in talks(FRESH_SEED, count):
        if talk.domain == "stories":
            continue
        text = render(talk)
        prompt = text[: text.index("<|response|>") + len("<|response|>")]
        got, reason = reply(engine, prompt)
        name = f"{talk.domain} {talk.language}"
        asked[name] += 1
        right[name] += got == talk.turns[0][1]
        stopped += reason == "stop"
    total = sum(asked.values())
    print(f"fresh questions: {sum(right.values())} of {total} exact, {stopped} stop by themselves")
    for name in sorted(asked):
        print(f"  {name}: {right[name]}/{asked[name]}")


def sums(engine: Engine) -> None:
    """Held-out and seen sums, asked as 'What is a + b?'."""
    every = [(a, s, b) for s in "+-" for a in range(100) for b in range(100) if s == "+" or a >= b]
    tables = [(a, "*", b) for a in range(13) for b in range(13)]
    rng = Random(7)
    for name, wanted in (
        ("held out", [x for x in every if held_out(*x)]),
        ("seen", [x for x in every if not held_out(*x)]),
        ("tables", tables),
    ):
        chosen = rng.sample(wanted, min(N_SUMS, len(wanted)))
        right = 0
        for a, sign, b in chosen:
            symbol = "×" if sign == "*" else sign
            prompt = f"<|userprompt|>What is {a} {symbol} {b}?<|endofuserprompt|><|response|>"
            right += reply(engine, prompt)[0] == answer(a, sign, b)
        print(f"{name}: {right} of {len(chosen)} ({len(wanted)} exist)")


def routing(engine: Engine) -> None:
    """Distances between domains, and within each between two halves of its texts."""
    texts = texts_by_domain(40)
    reference = Reference(NANO)
    halves = {
        name: [usage(engine, reference, some[half::2]) for half in (0, 1)]
        for name, some in texts.items()
    }
    names = sorted(halves)
    print("apart (total variation, mean of layers):", *names, sep=" | ")
    for a in names:
        print(f"{a} |", " | ".join(f"{apart(halves[a][0], halves[b][1]):.2f}" for b in names))
    for name in names:
        last = halves[name][0][-1]
        busiest = [f"{e} ({last[e]:.0%})" for e in np.argsort(-last)[:4]]
        print(f"{name}: experts of the last layer {', '.join(busiest)}")


def bias(engine: Engine) -> None:
    """Share of tokens that get another set of experts without the router's bias."""
    sets: list[list[np.ndarray]] = []
    for use_bias in (True, False):
        reference = Reference(NANO, use_bias=use_bias)
        sets.append([])
        for text in itertools.chain.from_iterable(texts_by_domain(4).values()):
            reference.logits(np.array(engine.tokenize(text, parse_special=True)[:128]))
            sets[-1] += [np.sort(chosen, -1) for chosen in reference.chosen]
    changed = [(a != b).any(-1).mean() for a, b in zip(*sets, strict=True)]
    print(f"without the bias {np.mean(changed):.0%} of the choices are another set of experts")


def main() -> None:
    """Quantize and measure."""
    from dotscli.quantize import quantize_checkpoint

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--type", default="q4")
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nano.gguf"
        for _ in quantize_checkpoint(NANO, path, type=args.type):
            pass
        with Engine.load(path, EngineOptions(n_threads=1, n_ctx=1024)) as engine:
            sums(engine)
            fresh(engine, args.count)
            routing(engine)
            bias(engine)


if __name__ == "__main__":
    main()
