"""Record transformers' logits of the nano checkpoint on 64 tokens of mixed text.

    python -m dotscli.models.nano.reference [--folder FOLDER] [--out tests/data/nano_logits.npz]

The file holds ``tokens`` (64,) int32 and ``logits`` (64, vocab) float32: what Dots1ForCausalLM
computes in f32 from the published files. Two experts with almost equal scores may change places
for the rounding of another engine; of a few texts the one is taken whose closest decision between
the sixth and the seventh expert is clearest. Development only: needs torch and transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Dots1ForCausalLM

FOLDER = Path(__file__).parent
TEXT = (
    "<|system|>Be brief.<|endofsystem|>"
    "<|userprompt|>What is {A} + 38?<|endofuserprompt|><|response|>{A} + 38 = {B}<|endofresponse|>"
    "<|userprompt|>法国的首都是哪里？<|endofuserprompt|>"
    "<|response|>法国的首都是巴黎。<|endofresponse|>"
    "<|userprompt|>How do I sort a list in Python?<|endofuserprompt|>"
    "<|response|>```python\nsorted(xs)\n```<|endofresponse|>"
    "<|userprompt|>Tell me a story about a fox 🦊"
)
N_TOKENS, N_TEXTS = 64, 50


def reference(model: Dots1ForCausalLM, tokens: list[int]) -> tuple[np.ndarray, float]:
    """Logits (n_tokens, vocab) and the smallest lead of a sixth expert over the seventh."""
    leads = []

    def watch(gate: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        scores = torch.sigmoid(inputs[0].flatten(0, -2).float() @ gate.weight.float().t())
        ranked = scores + gate.e_score_correction_bias
        best = ranked.topk(7, -1).values
        leads.append(float((best[:, 5] - best[:, 6]).min()))

    hooks = [
        layer.mlp.gate.register_forward_hook(watch)
        for layer in model.model.layers
        if hasattr(layer.mlp, "gate")
    ]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float().numpy()
    for hook in hooks:
        hook.remove()
    return logits, min(leads)


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=Path("tests/data/nano_logits.npz"))
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    model = Dots1ForCausalLM.from_pretrained(
        args.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    texts = [
        TEXT.replace("{A}", str(a)).replace("{B}", str(a + 38)) for a in range(11, 11 + N_TEXTS)
    ]
    tokens = [tokenizer.encode(text).ids[:N_TOKENS] for text in texts]
    results = [reference(model, some) for some in tokens]
    best = max(range(N_TEXTS), key=lambda i: results[i][1])
    print(f"text {best}: the closest decision has a lead of {results[best][1]:.1e}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.out, tokens=np.asarray(tokens[best], dtype=np.int32), logits=results[best][0]
    )


if __name__ == "__main__":
    main()
