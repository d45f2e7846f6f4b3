"""Trains a dots.llm1 of 38M parameters on Python's standard library, for bench/quality/presets.py.

    python -m venv torch-env && torch-env/bin/pip install torch tokenizers safetensors -e .
    torch-env/bin/python -m bench.quality.larger --work DIR --minutes 60

The nano model has seen 4-bit weights in its training, so it can't say what rounding costs a model
that has not. This one has not: bf16, router balanced by its bias, text that everyone with Python
has. DIR/model is a checkpoint in the published layout, written anew every few minutes, with
`heldout.txt` (the files whose hash says so; never trained on) and `calibration.txt` (the first
files of the training text) beside it. A run that was stopped goes on; the learning rate falls with
the share of --minutes that is spent. Model, optimizers and export are the nano model's.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from dotscli.models.nano.export import config, published, write_json
from dotscli.models.nano.model import Nano, Shape
from dotscli.models.nano.tokenizer_train import SPECIAL
from dotscli.models.nano.tokenizer_train import train as train_tokenizer
from dotscli.models.nano.train import BIAS_RATE, optimizers, rate, save

SHAPE = Shape(
    vocab_size=4096,
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    intermediate_size=1376,  # like the expert's width: whole blocks of 32, not of 256
    moe_intermediate_size=64,
    n_routed_experts=32,
)
N_BASE = SHAPE.vocab_size - len(SPECIAL)
LENGTH = 512  # tokens in a row, as many as bench/quality/presets.py evaluates at once
HELD_OUT_OF = 20
HELD_OUT_BYTES, CALIBRATION_BYTES, TOKENIZER_BYTES = 600_000, 100_000, 8_000_000
SAVE_EVERY_S = 240


def corpus() -> tuple[list[str], list[str]]:
    """Texts to learn and held-out texts: the library's .py files that are UTF-8, in hash order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    learnt, held_out = [], []
    found = {}
    for path in library.rglob("*.py"):
        name = path.relative_to(library).as_posix()
        # Installed packages aren't the library; code pages are tables of numbers.
        if not name.startswith(("site-packages/", "dist-packages/", "encodings/")):
            found[hashlib.blake2b(name.encode(), digest_size=8).hexdigest()] = path
    for digest, path in sorted(found.items()):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        (held_out if int(digest, 16) % HELD_OUT_OF == 0 else learnt).append(text)
    return learnt, held_out


def first(texts: list[str], nbytes: int) -> str:
    """Whole texts from the beginning of the list, about so many characters of them."""
    taken, room = [], nbytes
    for text in texts:
        if room <= 0:
            break
        if len(text) <= nbytes // 10:  # no single file is most of it
            taken.append(text)
            room -= len(text)
    return "\n".join(taken)


def prepare(work: Path, folder: Path) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the rows (n, LENGTH + 1) of uint16 to learn; made once, kept in `work`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = work / "rows.npy"
    if not rows.exists():
        learnt, held_out = corpus()
        (folder / "heldout.txt").write_text(first(held_out, HELD_OUT_BYTES), encoding="utf-8")
        calibration = first(learnt, CALIBRATION_BYTES)
        (folder / "calibration.txt").write_text(calibration, encoding="utf-8")
        tokenizer = train_tokenizer([first(learnt, TOKENIZER_BYTES)], N_BASE)
        tokenizer.save(str(folder / "tokenizer.json"))
        end = tokenizer.token_to_id(SPECIAL[0])
        ids = [np.array([*e.ids, end], np.uint16) for e in tokenizer.encode_batch(learnt)]
        flat = np.concatenate(ids)
        n = (len(flat) - 1) // LENGTH
        windows = np.lib.stride_tricks.sliding_window_view(flat, LENGTH + 1)[::LENGTH][:n]
        np.save(rows, np.random.default_rng(0).permutation(windows))
    return Tokenizer.from_file(str(folder / "tokenizer.json")), np.load(rows)


def export(model: Nano, folder: Path, tokenizer: Tokenizer) -> None:
    """The checkpoint in the published layout; the old one stays until the new one is whole."""
    ends = [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|endofresponse|>")]
    write_json(folder / "config.json", config(SHAPE, *ends))
    part = folder / "model.part"
    save_file(published(model.state_dict(), SHAPE), part, metadata={"format": "pt"})
    part.replace(folder / "model.safetensors")


def main() -> None:
    """The training loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    folder = args.work / "model"
    tokenizer, rows = prepare(args.work, folder)
    print(f"{len(rows) * LENGTH / 1e6:.1f}M tokens of text", flush=True)
    model = Nano(SHAPE)
    muon, adam = optimizers(model)
    groups = [group for o in (muon, adam) for group in o.param_groups]
    base = [float(group["lr"]) for group in groups]
    step, spent, average = 0, 0.0, 0.0
    saved = args.work / "larger.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        for part, value in (("model", model), ("muon", muon), ("adam", adam)):
            value.load_state_dict(state[part])
        step, spent, average = state["step"], state["spent"], state["average"]
        groups = [group for o in (muon, adam) for group in o.param_groups]
    last = kept_at = time.monotonic()
    while spent < args.minutes * 60:
        at = step * args.rows % (len(rows) - args.rows)
        ids = torch.from_numpy(rows[at : at + args.rows].astype(np.int64))
        share = rate(spent / (args.minutes * 60), step)
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * share
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        busiest = 0.0
        for block in model.sparse_blocks():
            busiest = max(busiest, float(block.load.max() / block.load.mean()))
            block.bias += BIAS_RATE * share * (block.load.mean() - block.load).sign()
            block.load.zero_()
        keep = min(0.98, step / (step + 1))
        average = keep * average + (1 - keep) * loss.item()
        step += 1
        now = time.monotonic()
        spent, last = spent + now - last, now
        if step % 10 == 0:
            print(
                f"step {step} min {spent / 60:.1f} loss {average:.4f} busiest {busiest:.2f}",
                flush=True,
            )
        if now - kept_at > SAVE_EVERY_S or spent >= args.minutes * 60:
            kept_at = now
            save(saved, model, muon, adam, step, spent, 0, average)
            export(model, folder, tokenizer)
    print(f"done: {step} steps, {step * args.rows * LENGTH / 1e6:.1f}M tokens, loss {average:.4f}")


if __name__ == "__main__":
    main()
