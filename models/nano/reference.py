"""Record transformers' logits of the nano checkpoint on 64 tokens of mixed text.

    python -m dotscli.models.nano.reference [--folder FOLDER] [--out tests/data/nano_logits.npz]

The file holds ``tokens`` (64,) int32 and ``logits`` (64, vocab) float32: what Dots1ForCausalLM
computes in f32 from the published files. Development only: needs torch and transformers.
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
    "<|userprompt|>What is 47 + 38?<|endofuserprompt|><|response|>47 + 38 = 85<|endofresponse|>"
    "<|userprompt|>法国的首都是哪里？<|endofuserprompt|>"
    "<|response|>法国的首都是巴黎。<|endofresponse|>"
    "<|userprompt|>How do I sort a list in Python?<|endofuserprompt|>"
    "<|response|>```python\nsorted(xs)\n```<|endofresponse|>"
    "<|userprompt|>Tell me a story about a fox 🦊"
)


def reference(folder: Path, tokens: list[int]) -> np.ndarray:
    """(n_tokens,) ids -> (n_tokens, vocab) logits, float32, eager attention."""
    model = Dots1ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=Path("tests/data/nano_logits.npz"))
    args = parser.parse_args()
    tokens = Tokenizer.from_file(str(args.folder / "tokenizer.json")).encode(TEXT).ids[:64]
    logits = reference(args.folder, tokens)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, tokens=np.asarray(tokens, dtype=np.int32), logits=logits)


if __name__ == "__main__":
    main()
