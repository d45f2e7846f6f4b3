"""Routing traces of the nano model by domain, from the forward pass in numpy that the tests have.

Conversations that the training never saw, one domain after the other: the model reads them token by
token and its routers say who would be used. A model in miniature that was trained to keep domains
apart: it shows that the simulator and a real router fit together, not how dots.llm1 routes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

STAY = 400  # tokens of each domain
HEAT_SEED, TRACE_SEED = 77, 31


def nano_traces(checkpoint: Path) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """The trace [tokens, layers, used] through all domains, heat per domain, number of experts.

    Heat [layers, experts] is of other conversations than the trace.
    """
    from bench.hot.policies import counts_of
    from dotscli.engine import Engine, EngineOptions
    from dotscli.quantize import quantize_checkpoint
    from tests.nano_reference import Reference, texts_by_domain

    reference = Reference(checkpoint)
    n_experts = int(reference.config["n_routed_experts"])
    gguf = ROOT / "build" / "nano-routing.gguf"
    gguf.parent.mkdir(exist_ok=True)
    for _ in quantize_checkpoint(checkpoint, gguf, "f32", force=True):
        pass
    with Engine.load(gguf, EngineOptions(n_ctx=256)) as engine:

        def routed(texts: list[str]) -> np.ndarray:
            parts, n_tokens = [], 0
            for text in texts:
                reference.logits(np.array(engine.tokenize(text, parse_special=True)))
                parts.append(np.stack(reference.chosen, axis=1))
                n_tokens += len(parts[-1])
                if n_tokens >= STAY:
                    break
            return np.concatenate(parts)[:STAY].astype(np.int16)

        known = texts_by_domain(40, seed=HEAT_SEED)
        fresh = texts_by_domain(40, seed=TRACE_SEED)
        heat = {name: counts_of(routed(texts), n_experts) for name, texts in sorted(known.items())}
        trace = np.concatenate([routed(texts) for _, texts in sorted(fresh.items())])
    return trace, heat, n_experts
