"""What the engine's tests share: loading with one thread, running, looking at pieces."""

from __future__ import annotations

from pathlib import Path

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.engine.stream import Piece

GREEDY = Sampling(temp=0.0)
PROMPT = "hello world"


def load(model: Path, **options: object) -> Engine:
    return Engine.load(model, EngineOptions(n_threads=1, **options))  # type: ignore[arg-type]


def run(
    engine: Engine, text: str = PROMPT, sampling: Sampling = GREEDY, **how: object
) -> list[Piece]:
    tokens = engine.tokenize(text, parse_special=True)
    return list(engine.generate(tokens, sampling, **({"n_predict": 12} | how)))  # type: ignore[arg-type]


def ids(pieces: list[Piece]) -> list[int]:
    return [piece.token for piece in pieces if piece.token is not None]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
