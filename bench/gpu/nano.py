"""The nano model's questions, answered in one process by one placement: prints JSON.

    python -m bench.gpu.nano NANO.gguf SIDE DEVICE [--threads N]

It is trained, so a device that computes wrongly shows in plain words: every question has an answer
that the model is known to give in 4 bits. Sides: `cpu`; `whole`, everything on the device; `hot`,
the dense layers and half of the experts; `exchanged`, the same with exchanges forced between the
questions; `streamed`, with all that isn't resident going through the device where a prompt is long
enough. A half is what the device of a rehearsal on the CPU has too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.lib.measure import ROOT
from dotscli.engine import Engine, EngineOptions, HotOptions
from dotscli.engine.sampling import Sampling
from dotscli.hot.backend.plugin import Streaming
from dotscli.hot.model_cost import file_cost
from dotscli.models.gguf_file import read_gguf
from dotscli.models.template import render

QUESTIONS = ROOT / "models" / "nano" / "questions.jsonl"
SIDES = ("cpu", "whole", "hot", "exchanged", "streamed")
ALL = 99
LONGEST = 200  # tokens of an answer


def options(side: str, gguf: Path, device: str, n_threads: int) -> EngineOptions:
    """As a user would type them; a CPU in the device's place gets no layers."""
    layers = 0 if side == "cpu" or device == "CPU" else ALL
    hot = None
    if side not in ("cpu", "whole"):
        nbytes = file_cost(read_gguf(gguf)).experts_nbytes // 2
        hot = HotOptions(nbytes, device, adapt=side == "exchanged", guard=False)
    return EngineOptions(n_ctx=1024, n_threads=n_threads, n_gpu_layers=layers, hot=hot)


def reply(engine: Engine, messages: list[dict[str, str]]) -> tuple[str, str | None]:
    """The answer at temperature 0 and why it ended."""
    text = render(engine.chat_template or "", messages)
    tokens = engine.tokenize(text, parse_special=True)
    pieces = list(engine.generate(tokens, Sampling(temp=0), n_predict=LONGEST))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def ask(engine: Engine, question: dict[str, Any]) -> tuple[str, str | None]:
    """Asks the questions before it, then the question itself."""
    messages = []
    if "system" in question:
        messages.append({"role": "system", "content": str(question["system"])})
    for earlier in [*question.get("before", []), question["question"]]:
        messages.append({"role": "user", "content": str(earlier)})
        text, reason = reply(engine, messages)
        messages.append({"role": "assistant", "content": text})
    return text, reason


def right(text: str, reason: str | None, question: dict[str, Any]) -> bool:
    """Whether the answer is the one that the model is known to give."""
    expected, how = str(question["answer"]), question.get("match", "exact")
    if reason != "stop":
        return False
    if how == "contains":
        return expected in text
    if how == "regex":
        return re.fullmatch(expected, text, re.DOTALL) is not None
    return text == expected


def rotate(engine: Engine) -> None:
    """Exchange one expert of every layer for one that isn't resident."""
    assert engine.hot is not None
    model = engine.hot._model
    for layer in model.layers():
        residents = model.residents(layer.layer)
        others = [e for e in range(layer.n_experts) if e not in residents]
        if residents and others:
            slot = sum(residents) % len(residents)
            model.place(layer.layer, slot, others[sum(residents) % len(others)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("device")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    notes: list[str] = []
    questions = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    chosen = options(given.side, given.gguf, given.device, given.threads)
    answers = []
    with Engine.load(given.gguf, chosen, on_log=notes.append) as engine:
        if engine.hot is not None and given.side == "streamed":
            engine.hot._model.set_streaming(Streaming.ALWAYS)
        for question in questions:
            if engine.hot is not None and given.side == "exchanged":
                rotate(engine)
            text, reason = ask(engine, question)
            answers.append(
                {
                    "question": question["question"],
                    "text": text,
                    "reason": reason,
                    "right": right(text, reason, question),
                }
            )
        hot = asdict(engine.hot.figures()) if engine.hot is not None else None
    json.dump({"side": given.side, "answers": answers, "hot": hot, "notes": notes}, sys.stdout)


if __name__ == "__main__":
    main()
