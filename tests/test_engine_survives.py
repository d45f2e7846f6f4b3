"""Whatever passes the checks must not bring llama.cpp down: damaged headers, odd sizes.

A crash would end the process, so another one runs the engine and says what became of each file.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf
from tests import gguf_maker

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import sys
from pathlib import Path
from dotscli.engine import Engine, EngineOptions
from dotscli.errors import DotsError
from dotscli.engine.sampling import Sampling
for path in sys.argv[1:]:
    try:
        with Engine.load(Path(path), EngineOptions(n_threads=1, n_ctx=256)) as engine:
            tokens = engine.tokenize("hello world<|endofresponse|>\\n", parse_special=True)
            engine.detokenize(tokens, special=True)
            list(engine.generate(tokens, Sampling(seed=1), n_predict=3))
            list(engine.generate([1], Sampling(seed=1, grammar='root ::= [a-z]+'), n_predict=3))
        print("ok")
    except DotsError:
        print("refused")
"""
SMALL = {"hidden": 32, "n_heads": 2, "n_ff": 32, "n_ff_expert": 32, "n_layers": 2, "n_experts": 4}
ODD = (
    {"hidden": 34, "n_heads": 17, "n_ff": 1, "n_ff_expert": 1, "n_layers": 2},
    {"hidden": 64, "n_heads": 1, "n_experts": 2, "n_experts_used": 2, "n_shared_experts": 1},
    {"hidden": 32, "n_heads": 2, "n_experts": 129, "n_experts_used": 129, "n_layers": 2},
    {"hidden": 96, "n_heads": 3, "n_layers": 1, "n_dense_layers": 1, "n_ctx": 1},
    {"hidden": 32, "n_heads": 2, "n_layers": 2, "n_dense_layers": 0, "n_ctx": 10**6},
)


def damaged(folder: Path, count: int) -> Iterator[Path]:
    """Files with random bits turned over that still pass the checks."""
    good = gguf_maker.dots1(**SMALL)
    raw = bytes(good)
    first, last = good.borders["value of tokenizer.ggml.tokens"], good.borders["data"]
    rng = random.Random(20)
    while count:
        spoiled = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(rng.choice((first, last)))
            spoiled[place] ^= 1 << rng.randrange(8)
        path = folder / f"damaged-{count}.gguf"
        path.write_bytes(spoiled)
        try:
            check_dots1(read_gguf(path))
        except DotsError:
            continue
        count -= 1
        yield path


@pytest.mark.parametrize("what", ["damaged", "odd"])
def test_what_passes_the_checks_does_not_crash(tmp_path: Path, what: str) -> None:
    if what == "damaged":
        paths = list(damaged(tmp_path, 20))
    else:
        made = [gguf_maker.dots1(**sizes) for sizes in ODD]
        paths = [m.write(tmp_path / f"odd-{i}.gguf") for i, m in enumerate(made)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = done.stdout.split()
    assert done.returncode == 0, f"{paths[len(answers)].name}: {done.stderr[-500:]}"
    assert len(answers) == len(paths)
    if what == "odd":
        assert set(answers) == {"ok"}
