"""One generation through dotscli.engine in a fresh process; prints JSON. Used by decode.py.

python -m bench.answer.decode_once MODEL PROMPT TOKENS THREADS N_CTX --temp 0.8 ... --seed 42
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("tokens", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("n_ctx", type=int)
    default = Sampling()
    for name in ("temp", "top_k", "top_p", "min_p", "repeat_penalty", "seed"):
        value = getattr(default, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    at = parser.parse_args()
    sampling = Sampling(
        temp=at.temp,
        top_k=at.top_k,
        top_p=at.top_p,
        min_p=at.min_p,
        repeat_penalty=at.repeat_penalty,
        seed=at.seed,
    )
    options = EngineOptions(n_ctx=at.n_ctx, n_threads=at.threads)
    with Engine.load(at.model, options) as engine:
        tokens = engine.tokenize(at.prompt, parse_special=True)
        pieces = list(engine.generate(tokens, sampling, n_predict=at.tokens))
    stats = pieces[-1].stats
    assert stats is not None
    print(
        json.dumps(
            {
                "text": "".join(piece.text for piece in pieces),
                "tokens": stats.completion_tokens,
                "decode_tps": stats.decode_tps,
                "prefill_tps": stats.prefill_tps,
                "ttft_s": stats.ttft_s,
                "load_s": engine.load_s,
            }
        )
    )


if __name__ == "__main__":
    main()
