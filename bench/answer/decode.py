"""How fast a model speaks through dots, against llama-completion and llama-bench.

Four sides take turns on the same GGUF with the same threads, context and number of tokens:
  llama-completion   same sampling settings and seed; its own printed times
  dots engine        dotscli.engine in a process of its own (bench/answer/decode_once.py)
  dots prompt        the whole command, its own figures from --json
  llama-bench tg     decode alone, nothing is sampled
once with the default sampling settings and once greedily. The texts are compared too: the same
seed has to give the same text on the first three sides.

    python -m bench.answer.decode                 # writes docs/bench/decode.md

The model: the checkpoint preset `decode` of bench/lib/checkpoint.py (14 layers, 32 experts, the
full vocabulary of 152,064), quantized by `dots quantize --type q4_k_m`. Disk: about 3 GB.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    dots,
    dots_env,
    note,
    ratios,
    run,
    spread,
    table,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.reference import Reference, cache_folder, reference

PROMPT = "The history of the computer begins with"
# The defaults of both programs, written out: a model's metadata may set others.
SAMPLED = (
    "--temp",
    "0.8",
    "--top-k",
    "40",
    "--top-p",
    "0.95",
    "--min-p",
    "0.05",
    "--repeat-penalty",
    "1.0",
    "--seed",
    "42",
)
GREEDY = ("--temp", "0", "--repeat-penalty", "1.0", "--seed", "42")
N_CTX = 1024


@dataclass(frozen=True)
class Speech:
    """What one side did: tokens per second of decoding, the text, further figures by name."""

    tps: float
    text: str = ""
    pure_tps: float = 0.0  # llama-completion: without the time it spent sampling


@dataclass(frozen=True)
class Setting:
    """What all sides of one comparison have in common."""

    gguf: Path
    threads: int
    tokens: int
    sampling: tuple[str, ...]
    where: Reference


def llama_completion(at: Setting) -> Speech:
    """Decoded tokens per second of llama.cpp's eval and sampling times together, and of eval."""
    done = run(
        [
            at.where.tool("llama-completion"),
            "-m",
            at.gguf,
            "-p",
            PROMPT,
            "-n",
            str(at.tokens),
            "-t",
            str(at.threads),
            "-c",
            str(N_CTX),
            *at.sampling,
            "-no-cnv",
            "--no-display-prompt",
            "--perf",
            "--simple-io",
        ]
    )
    eval_ms, runs = found(r" eval time =\s+([\d.]+) ms /\s+(\d+) runs", done.stderr)
    (sampling_ms,) = found(r"sampling time =\s+([\d.]+) ms", done.stderr)
    return Speech(
        tps=runs / (eval_ms + sampling_ms) * 1e3,
        text=done.stdout.strip(),
        pure_tps=runs / eval_ms * 1e3,
    )


def dots_engine(at: Setting) -> Speech:
    once = Path(__file__).with_name("decode_once.py")
    done = run(
        [
            sys.executable,
            once,
            at.gguf,
            PROMPT,
            str(at.tokens),
            str(at.threads),
            str(N_CTX),
            *at.sampling,
        ],
        env=dots_env(),
    )
    answer = json.loads(done.stdout)
    return Speech(tps=answer["decode_tps"], text=answer["text"].strip())


def dots_prompt(at: Setting) -> Speech:
    done = run(
        [
            *dots(),
            "prompt",
            PROMPT,
            "-m",
            at.gguf,
            "--no-template",
            "--json",
            "-n",
            str(at.tokens),
            "-t",
            str(at.threads),
            "-c",
            str(N_CTX),
            *at.sampling,
        ],
        env=dots_env(),
    )
    answer = json.loads(done.stdout)
    return Speech(tps=answer["timings"]["decode_tps"], text=answer["text"].strip())


def llama_bench(at: Setting) -> Speech:
    done = run(
        [
            at.where.tool("llama-bench"),
            "-m",
            at.gguf,
            "-p",
            "0",
            "-n",
            str(at.tokens),
            "-t",
            str(at.threads),
            "-r",
            "1",
            "-o",
            "json",
        ]
    )
    return Speech(tps=json.loads(done.stdout)[0]["avg_ts"])


SIDES = {
    "llama-completion": llama_completion,
    "dots engine": dots_engine,
    "dots prompt": dots_prompt,
    "llama-bench tg": llama_bench,
}


def found(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no '{pattern}' in:\n{text[-2000:]}")
    return [float(group) for group in match.groups()]


def compare(at: Setting, repeats: int) -> str:
    """Let the sides take turns; the table and what the texts say."""
    results: dict[str, list[Speech]] = {name: [] for name in SIDES}
    for number in range(repeats):
        for name, side in SIDES.items():
            results[name].append(side(at))
        note(
            f"  {number + 1}/{repeats} "
            + ", ".join(f"{name} {speeches[-1].tps:.1f}" for name, speeches in results.items())
        )
    tps = {name: [s.tps for s in speeches] for name, speeches in results.items()}
    pure = [s.pure_tps for s in results["llama-completion"]]
    rows = [
        [
            name,
            spread(values, 1),
            spread(ratios(values, tps["llama-completion"]), 3),
            spread(ratios(values, pure), 3),
            spread(ratios(values, tps["llama-bench tg"]), 3),
        ]
        for name, values in tps.items()
    ]
    texts = {s.text for name in SIDES if name != "llama-bench tg" for s in results[name]}
    same = (
        "All three gave the same text every time."
        if len(texts) == 1
        else (f"The texts differ: {len(texts)} different ones.")
    )
    return (
        table(["side", "tokens/s", "/ llama-completion", "/ its eval alone", "/ llama-bench"], rows)
        + f"\n\n{same}"
    )


def quantized(checkpoint: Path, type: str, out: Path) -> Path:
    """The checkpoint as GGUF, made now if it isn't there yet."""
    if not out.exists():
        run([*dots(), "quantize", checkpoint, "-o", out, "--type", type], env=dots_env())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a GGUF instead of the `decode` preset")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "decode.md")
    options = parser.parse_args()
    where = reference(options.cache)
    gguf = options.model or quantized(
        cached("decode", options.cache / "checkpoints", options.cache),
        "q4_k_m",
        options.cache / "decode-q4_k_m.gguf",
    )
    warm([gguf])
    load = wait_until_quiet(0.1, options.patience)
    sections = [
        f"Model: {gguf.name}, {gguf.stat().st_size / 1e6:,.0f} MB. {options.threads} threads, "
        f"{options.tokens} tokens, context {N_CTX}, {options.repeats} rounds in turn; medians, "
        f"in brackets the range. Ratios are of neighbouring runs. Other programs used "
        f"{load:.2f} cores when it began.\n\nllama-completion's speed is what it prints for "
        "decoding and for sampling together, as the speed of dots contains both; the next column "
        "leaves its sampling out."
    ]
    for title, sampling in (("Default sampling", SAMPLED), ("Greedy", GREEDY)):
        note(title)
        at = Setting(gguf, options.threads, options.tokens, sampling, where)
        sections += [f"## {title}", f"`{' '.join(sampling)}`", compare(at, options.repeats)]
    print("\n\n".join(sections))
    write_report(options.report, "Decode", sections)


if __name__ == "__main__":
    main()
