"""Train the nano model on a CPU: conversations by seed, Muon and AdamW, bf16 matmuls.

    python -m dotscli.models.nano.train --work DIR [--minutes 70 | --steps 4000]

Checkpoints go to DIR/nano.pt every few minutes and are resumed from. The learning rate is flat for
the first 55 % of the time and falls linearly to the end; from 55 % on every second step sees the
weights as 4-bit blocks, so that quantizing does no harm. Development only: needs torch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from dotscli.models.nano.model import Nano, Shape
from dotscli.models.nano.muon import Muon
from dotscli.models.nano.text import Talk, long_talks, render, talks

FOLDER = Path(__file__).parent
LENGTH, LONG = 256, 1024  # tokens in a row; one batch in seven has long rows
TALKS_PER_CHUNK, LONG_TALKS_PER_CHUNK = 4000, 44
PROMPT_SHARE = 0.1  # share of the tokens outside the replies that are learnt too
MUON_RATE, ADAM_RATE, BIAS_RATE = 0.02, 3e-3, 2e-3
FLAT = 0.55
FOCUS, ENOUGH = 0.3, 0.6  # weight of what a conversation tells of its experts; nats that suffice


def pack(tokenizer: Tokenizer, seed: int, texts: Iterable[Talk], length: int) -> tuple[Tensor, ...]:
    """One chunk of text as rows: ids (n, length + 1), document numbers, what is to be learnt."""
    response, end = (
        tokenizer.token_to_id("<|response|>"),
        tokenizer.token_to_id("<|endofresponse|>"),
    )
    rng = np.random.default_rng(seed)
    lengths: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []
    documents = []
    for encoding in tokenizer.encode_batch([render(t) for t in texts]):
        row = np.asarray(encoding.ids[: length + 1], dtype=np.int64)
        inside = np.cumsum(row == response) > np.cumsum(row == end)  # true on <|response|> .. last
        wants = np.zeros(len(row), dtype=bool)
        wants[:-1] = inside[:-1]  # position i predicts i + 1, the end token included
        wants |= rng.random(len(row)) < PROMPT_SHARE
        wants[-1] = False  # the next document begins here
        documents.append((row, wants))
    documents.sort(key=lambda d: -len(d[0]))
    for number, (row, _) in enumerate(documents):
        for slot, (room, members) in enumerate(open_rows):
            if room >= len(row):
                members.append(number)
                open_rows[slot] = (room - len(row), members)
                if room - len(row) < 12:
                    lengths.append(members)
                    del open_rows[slot]
                break
        else:
            open_rows.append((length + 1 - len(row), [number]))
    rows = lengths + [members for _, members in open_rows]
    numbers = np.full((len(rows), length + 1), -1, dtype=np.int64)
    out = np.zeros((len(rows), length + 1), dtype=np.int64)
    learn = np.zeros((len(rows), length + 1), dtype=bool)
    for i, members in enumerate(rows):
        at = 0
        for number in rng.permutation(members):
            row, wants = documents[number]
            out[i, at : at + len(row)] = row
            learn[i, at : at + len(row)] = wants
            numbers[i, at : at + len(row)] = number
            at += len(row)
    order = rng.permutation(len(rows))
    return (
        torch.from_numpy(out[order]),
        torch.from_numpy(numbers[order]),
        torch.from_numpy(learn[order]),
    )


def batches(
    tokenizer: Tokenizer, seed: int, chunk: int, rows: int
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Endless batches with the number of their chunk of text."""
    while True:
        drawn = seed * 1_000_003 + chunk
        packed = pack(tokenizer, drawn, talks(drawn, TALKS_PER_CHUNK), LENGTH)
        long = pack(tokenizer, drawn, long_talks(drawn, LONG_TALKS_PER_CHUNK), LONG)
        few = rows * LENGTH // LONG
        for n, i in enumerate(range(0, len(packed[0]) - rows + 1, rows)):
            yield chunk, tuple(p[i : i + rows] for p in packed)
            j = n // 6 * few
            if n % 6 == 5 and j + few <= len(long[0]):
                yield chunk, tuple(p[j : j + few] for p in long)
        chunk += 1


def optimizers(model: Nano) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for embeddings, head, routers and norms."""
    straight, transposed, others = [], [], []
    for name, p in model.named_parameters():
        if name in ("embed", "head") or p.ndim < 2 or name.endswith("router"):
            others.append((name, p))
        elif name.endswith("down"):
            transposed.append(p)
        else:
            straight.append(p)
    muon = Muon(
        [{"params": straight}, {"params": transposed, "transposed": True}], MUON_RATE, 0.95, 0.05
    )
    groups = [
        {"params": [p for n, p in others if not n.endswith("router")], "lr": ADAM_RATE},
        {"params": [p for n, p in others if n.endswith("router")], "lr": ADAM_RATE / 2},
    ]
    return muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)


def rate(progress: float, step: int) -> float:
    """Share of the full learning rate."""
    warm = min(1.0, (step + 1) / 60)
    return warm * (1.0 if progress < FLAT else max(0.01, (1 - progress) / (1 - FLAT)))


def main() -> None:
    """The training loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = Nano(Shape())
    muon, adam = optimizers(model)
    full = [[float(group["lr"]) for group in o.param_groups] for o in (muon, adam)]
    step, spent, chunk, average = 0, 0.0, 0, 0.0
    spread = torch.zeros(())
    saved = args.work / "nano.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, spent, chunk, average = (
            state["step"],
            state["spent"],
            state["chunk"] + 1,
            state["average"],
        )
    # after the load, which puts new groups (with the old rates) in the place of those made above
    groups = [group for o in (muon, adam) for group in o.param_groups]
    base = list(zip(groups, [lr for some in full for lr in some], strict=True))
    causal = torch.ones(LONG, LONG, dtype=torch.bool).tril()
    last = saved_at = time.monotonic()
    started_from = spent
    begin = last
    text = batches(tokenizer, args.seed, chunk, args.rows)
    for chunk, (ids, documents, learn) in text:
        progress = max(step / args.steps, spent / (args.minutes * 60))
        if progress >= 1:
            break
        calm = rate(progress, step)
        for group, lr in base:
            group["lr"] = lr * calm
        document, length = documents[:, :-1], ids.shape[1] - 1
        mask = ((document[:, :, None] == document[:, None, :]) & causal[:length, :length])[:, None]
        select = learn[:, :-1].flatten().nonzero()[:, 0]
        talks_of = None
        if length == LENGTH:  # long conversations are about everything
            talks_of = torch.unique(document.flatten(), return_inverse=True)[1]
        q4 = progress > FLAT and step % 2 == 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1], mask, select, q4, talks_of)
        loss = F.cross_entropy(logits.float(), ids[:, 1:].flatten()[select])
        spreads = [block.spread for block in model.sparse_blocks() if block.spread is not None]
        total = loss
        if spreads:
            spread = torch.stack(spreads).mean()
            total = loss + FOCUS * calm * (spread + ENOUGH).clamp(min=0)
        total.backward()
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        worst = 0.0
        for block in model.sparse_blocks():
            error = block.load.mean() - block.load
            worst = max(worst, float(block.load.max() / block.load.mean()))
            block.bias += BIAS_RATE * calm * error.sign()
            block.load.zero_()
        keep = min(0.98, step / (step + 1))
        average = keep * average + (1 - keep) * loss.item()
        step += 1
        now = time.monotonic()
        spent = started_from + now - begin
        if step % 20 == 0:
            speed = 20 * args.rows * LENGTH / (now - last)
            last = now
            print(
                f"step {step} min {spent / 60:.1f} progress {progress:.3f} loss {average:.4f} "
                f"tokens/s {speed:.0f} busiest {worst:.2f} spread {spread:.3f}",
                flush=True,
            )
        if now - saved_at > 180:
            saved_at = now
            save(saved, model, muon, adam, step, spent, chunk, average)
    save(saved, model, muon, adam, step, spent, chunk, average)
    print(
        f"done: {step} steps, {step * args.rows * LENGTH / 1e6:.1f}M tokens, "
        f"{spent / 60:.1f} min, loss {average:.4f}",
        flush=True,
    )


def save(
    path: Path,
    model: Nano,
    muon: Muon,
    adam: torch.optim.AdamW,
    step: int,
    spent: float,
    chunk: int,
    average: float,
) -> None:
    """Write the checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "muon": muon.state_dict(),
            "adam": adam.state_dict(),
            "step": step,
            "spent": spent,
            "chunk": chunk,
            "average": average,
        },
        part,
    )
    part.replace(path)


if __name__ == "__main__":
    main()
