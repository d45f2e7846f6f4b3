"""What drawing an answer's Markdown costs while it streams.

    python -m bench.answer.drawing --out docs/bench/drawing.md

An answer of 12,000 characters (paragraphs, lists, a table, code, Chinese) comes in pieces of four,
so many a second, as if a model made them: between two pieces the process sleeps. The time spent in
drawing is compared with the time that the answer takes; a terminal is a pipe that somebody reads.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

from bench.lib.measure import ROOT, note, spread, table, write_report
from dotscli.terminal.live import Live

N_CHARACTERS, PIECE = 12_000, 4
RATES = (5, 20, 60)  # pieces per second
SHORTER = {5: 30, 20: 8, 60: 3}  # the part of the answer that is waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/bench/drawing.md")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for rate in RATES:
        shares = [_share(rate) for _ in range(options.rounds)]
        note(f"  {rate} pieces a second: {shares}")
        rows.append([str(rate), spread(shares, 3)])
    text = f"{N_CHARACTERS:,} characters in pieces of {PIECE}, {options.rounds} rounds."
    header = ["pieces a second", "drawing, of all time"]
    write_report(options.out, "Drawing an answer", [text, table(header, rows)])


def _answer() -> str:
    code = (ROOT / "dotscli/terminal/live.py").read_text("utf-8")[:2500]
    rows = "".join(f"| {n} | value {n * n} | 中文 {n} |\n" for n in range(20))
    parts = [
        "# A long answer\n\n", "Words of a paragraph that goes on. " * 12 + "\n\n",
        "".join(f"{n}. point **{n}** with `code`\n" for n in range(1, 15)) + "\n",
        f"```python\n{code}\n```\n\n", f"| a | b | c |\n|--|--|--|\n{rows}\n",
        "中文字符的段落。" * 40 + "\n\n",
    ]  # fmt: skip
    text = "".join(parts)
    return (text * (N_CHARACTERS // len(text) + 1))[:N_CHARACTERS]


def _share(rate: int) -> float:
    """Seconds of drawing over all seconds."""
    reading, writing = os.pipe()
    reader = threading.Thread(target=_drain, args=(reading,), daemon=True)
    reader.start()
    with os.fdopen(writing, "w", encoding="utf-8") as terminal:

        def write(text: str) -> None:
            terminal.write(text)
            terminal.flush()

        text = _answer()
        text = text[: len(text) // SHORTER[rate]]
        live = Live(write, lambda: (80, 24), True, lambda: "42 tok · 4.1 tok/s")
        drawing, began = 0.0, time.perf_counter()
        for at in range(0, len(text), PIECE):
            time.sleep(1 / rate)
            since = time.perf_counter()
            live.feed(text[at : at + PIECE])
            drawing += time.perf_counter() - since
        whole = time.perf_counter() - began
        live.end()
    reader.join()
    return drawing / whole


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 1 << 16):
        pass
    os.close(descriptor)


if __name__ == "__main__":
    main()
