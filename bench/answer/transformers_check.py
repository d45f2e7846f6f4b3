"""Does a model say the same through dotscli as through transformers? Logits and token ids.

transformers' own Dots1ForCausalLM is filled with random weights (router bias and norms too) and
written with save_pretrained; `dots quantize --type f32` converts it; then
  1. the logits of 64 tokens are compared: largest difference at most 1e-2, the same top token
     at every position (f32 throughout: eager attention there, an f32 cache here). llama.cpp's
     default attention in f16 is reported too, without a limit: where two experts are nearly
     tied it may choose the other one, and that token's logits are then different altogether;
  2. the token ids of a written list of mixed texts are compared with the tokenizers library.

Runs in a Python that has torch and transformers besides dotscli's own dependencies:

    python -m venv torch-env
    torch-env/bin/pip install torch transformers -e .
    torch-env/bin/python -m bench.answer.transformers_check

Needs npm once, for the vocabulary. Disk: about 1 GB.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.lib.checkpoint import PRESETS, config
from bench.lib.measure import ROOT, Transcript, dots, dots_env, run, write_report
from bench.lib.reference import cache_folder
from bench.lib.texts import MIXED
from bench.lib.vocabulary import N_BASE_TOKENS, write_vocabulary

if TYPE_CHECKING:
    from dotscli.engine import Engine

N_TOKENS = 64
TOLERANCE = 1e-2


def write_with_transformers(folder: Path, cache: Path, seed: int) -> None:
    """A random Dots1ForCausalLM through save_pretrained, in several shards, with the vocabulary."""
    import torch
    from transformers import Dots1Config, Dots1ForCausalLM

    torch.manual_seed(seed)
    values = config(PRESETS["odd"])
    values["torch_dtype"] = "float32"
    model = Dots1ForCausalLM(Dots1Config(**values))
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                parameter.normal_(0.0, 0.1)
            elif "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif parameter.dim() > 1:
                # The class's 0.02 would leave experts and logits too small to go wrong.
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder, max_shard_size="100MB")
    write_vocabulary(folder, "qwen", cache)


def expected_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """(n_tokens, n_vocab) float32 from transformers in f32 with eager attention."""
    import torch
    from transformers import Dots1ForCausalLM

    model = Dots1ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits


def check_logits(name: str, expected: np.ndarray, actual: np.ndarray, out: Transcript) -> bool:
    """Say how far two (n_tokens, n_vocab) arrays agree; whether it is within the limit."""
    each = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(-1)
    same = (expected.argmax(-1) == actual.argmax(-1)).sum()
    out.say(
        f"logits, {name}: {expected.shape[0]} tokens x {expected.shape[1]}, "
        f"spread {expected.std():.2f}: max |d| {each.max():.1e}, "
        f"median of tokens {np.median(each):.1e}, "
        f"{(each <= TOLERANCE).sum()} tokens within {TOLERANCE:.0e}, top-1 equal at {same}"
    )
    return bool(each.max() <= TOLERANCE and same == len(expected))


def check_tokens(folder: Path, engine: Engine, out: Transcript) -> bool:
    """Compare ids of every text, special tokens read as such, and the way back to bytes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrong = back = 0
    for text in MIXED:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        actual = engine.tokenize(text, parse_special=True)
        if actual != expected:
            wrong += 1
            out.say(f"  differs: {text!r}\n    tokenizers {expected}\n    dots       {actual}")
        elif engine.detokenize(actual, special=True).decode() != tokenizer.decode(
            expected, skip_special_tokens=False
        ):
            back += 1
            out.say(f"  detokenized differently: {text!r}")
    out.say(
        f"token ids: {len(MIXED) - wrong} of {len(MIXED)} texts equal, {back} come back changed"
    )
    return wrong == 0 and back == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache_folder(),
        help="where the vocabulary package is kept (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "transformers.md")
    options = parser.parse_args()
    missing = [
        n
        for n in ("torch", "transformers", "llama_cpp", "gguf")
        if importlib.util.find_spec(n) is None
    ]
    if missing:
        raise SystemExit(f"this Python lacks {', '.join(missing)}; set one up:\n{__doc__}")
    from dotscli.engine import Engine, EngineOptions

    out = Transcript()
    with tempfile.TemporaryDirectory() as name:
        folder, gguf = Path(name) / "checkpoint", Path(name) / "f32.gguf"
        write_with_transformers(folder, options.cache, options.seed)
        written = json.loads((folder / "config.json").read_text())
        out.say(
            f"written by transformers {written['transformers_version']}: "
            f"{written['num_hidden_layers']} layers, "
            f"{len(list(folder.glob('*.safetensors')))} shards"
        )
        run([*dots(), "quantize", folder, "-o", gguf, "--type", "f32"], env=dots_env())
        random = np.random.default_rng(options.seed)
        tokens = [int(t) for t in random.integers(0, N_BASE_TOKENS, N_TOKENS)]
        expected = expected_logits(folder, tokens)
        sizes = EngineOptions(n_ctx=4 * N_TOKENS, n_batch=N_TOKENS)
        exact = replace(sizes, cache_type_k="f32", cache_type_v="f32", flash_attn="off")
        with Engine.load(gguf, exact) as engine:
            good = check_logits("f32 attention", expected, engine.logits(tokens), out)
            good &= check_tokens(folder, engine, out)
        with Engine.load(gguf, sizes) as engine:
            check_logits("default attention", expected, engine.logits(tokens), out)
    out.say("agrees" if good else "DIFFERS")
    how = f"`python -m bench.answer.transformers_check --seed {options.seed}`"
    write_report(options.report, "The same as transformers", [how, out.block()])
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
