"""`dots inspect`: what a checkpoint, a GGUF or an importance matrix holds.

Facts are gathered into one value that --json prints as it is and that the tables are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes
from dotscli.views.tensor_groups import COLUMNS, RIGHT, Stored, table_rows, tally

SHOWN_KEYS = 200  # characters of a value in the table of keys
# What a checkpoint's numbers are called in its config.json.
CONFIG_KEYS = {
    "n_layers": "num_hidden_layers", "n_dense_layers": "first_k_dense_replace",
    "n_embd": "hidden_size", "n_ff": "intermediate_size", "n_ff_expert": "moe_intermediate_size",
    "n_heads": "num_attention_heads", "head_dim": "head_dim", "n_experts": "n_routed_experts",
    "n_experts_used": "num_experts_per_tok", "n_shared_experts": "n_shared_experts",
    "expert_groups": "n_group", "expert_groups_used": "topk_group",
    "expert_scale": "routed_scaling_factor", "expert_norm": "norm_topk_prob",
    "vocab_size": "vocab_size", "n_ctx_train": "max_position_embeddings",
    "rms_eps": "rms_norm_eps", "rope_theta": "rope_theta", "bos_id": "bos_token_id",
    "eos_ids": "eos_token_id", "pad_id": "pad_token_id",
}  # fmt: skip


def inspect(terminal: Terminal, path: Path, as_json: bool) -> None:
    """Say what a checkpoint folder, a GGUF or an importance matrix holds.

    Raises:
        DotsError: it is none of them, or damaged.
    """
    if path.is_dir() or path.name == "config.json":
        facts, stored = checkpoint_facts(path if path.is_dir() else path.parent)
    elif path.exists():
        facts, stored = gguf_facts(path)
    else:
        raise DotsError(f"{path} not found", hint="give a checkpoint folder or a GGUF file")
    groups = tally(stored)
    if as_json:
        terminal.json(
            {
                **facts,
                "groups": [group.as_json() for group in groups[:-1]],
                "tensors": [
                    {"name": s.name, "type": s.type, "bytes": s.nbytes, "weights": s.n_weights}
                    for s in stored
                ],
            }
        )
        return
    terminal.write(f"{path}: {facts['kind']}\n")
    if path.is_dir() or path.name == "config.json":
        facts["model"] = {
            key: facts["model"][name]
            for name, key in CONFIG_KEYS.items()
            if facts["model"].get(name) not in (None, ())
        }
    for title in ("model", "tokenizer", "general"):
        values = facts.get(title)
        if isinstance(values, Mapping) and values:
            terminal.write(f"\n{title}\n")
            width = max(len(name) for name in values)
            for name, value in values.items():
                terminal.write(f"  {name:{width}}  {_shown(value)}\n")
    template = facts.get("chat_template")
    if template is not None:
        terminal.write(f"\nchat template\n  {_shown(template)}\n")
    if stored:
        terminal.write("\n")
        terminal.table(COLUMNS, table_rows(groups), RIGHT)
    for line in facts["notes"]:
        terminal.write(f"\n{line}\n")


def checkpoint_facts(folder: Path) -> tuple[dict[str, Any], list[Stored]]:
    """Facts about a checkpoint; without weights, what config.json alone says."""
    from dotscli.models.chat_template import chat_template
    from dotscli.models.dots1 import Dots1
    from dotscli.models.vocab import Vocab
    from dotscli.quantize import plan_checkpoint
    from dotscli.quantize.source.shards import Shards

    model = Dots1.load(folder)
    facts: dict[str, Any] = {
        "path": str(folder),
        "kind": "dots.llm1 checkpoint",
        "model": {name: value for name, value in vars(model).items() if value is not None},
        "tokenizer": {},
        "chat_template": None,
        "notes": [],
    }
    if (folder / "tokenizer.json").is_file():
        vocab = Vocab.load(folder, model)
        facts["tokenizer"] = {
            "tokens": len(vocab.tokens),
            "merges": len(vocab.merges),
            "pre_tokenizer": vocab.pre,
            "eos": vocab.tokens[vocab.eos_id],
        }
        facts["notes"] += list(vocab.warnings)
        facts["chat_template"] = chat_template(folder)
    stored: list[Stored] = []
    plan = plan_checkpoint(folder)  # complete, or it says what is missing
    if any(folder.glob("*.safetensors")):
        shards = Shards.open(folder)
        facts["shards"] = len(shards.paths)
        for spec in shards.specs(model):
            source = spec.sources[0]
            nbytes = spec.n_rows * shards.row_nbytes(source.name)
            stored.append(Stored(spec.name, shards.dtype(source.name), nbytes, spec.n_elements))
        shards.close()
    facts["notes"].append(
        f"As q4 it would take {format_bytes(plan.total_bytes)}, {plan.bpw:.2f} bits per weight: "
        f"dots quantize {folder}"
    )
    return facts, stored


def gguf_facts(path: Path) -> tuple[dict[str, Any], list[Stored]]:
    """Facts about a GGUF: a model, or an importance matrix."""
    from dotscli.models.gguf_file import GgufArray, read_gguf

    gguf = read_gguf(path)
    keys: dict[str, Any] = {}
    for key, value in gguf.metadata.items():
        if isinstance(value, GgufArray):
            keys[key] = f"{len(value)} values"
        elif isinstance(value, float):  # seven digits, as a float32 has; JSON has no NaN
            keys[key] = float(f"{value:.7g}") if math.isfinite(value) else str(value)
        else:
            keys[key] = value
    architecture = keys.get("general.architecture", "?")
    is_imatrix = keys.get("general.type") == "imatrix"
    template = keys.pop("tokenizer.chat_template", None)
    prefix = f"{architecture}."
    facts: dict[str, Any] = {
        "path": str(path),
        "kind": f"importance matrix, GGUF v{gguf.version}"
        if is_imatrix
        else f"{architecture} model, GGUF v{gguf.version}",
        "file_bytes": gguf.file_nbytes,
        "shards": len(gguf.shards),
        "model": {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)},
        "tokenizer": {
            k.removeprefix("tokenizer."): v for k, v in keys.items() if k.startswith("tokenizer.")
        },
        "general": {k: v for k, v in keys.items() if not k.startswith((prefix, "tokenizer."))},
        "chat_template": template,
        "notes": [],
    }
    if is_imatrix:
        facts["model"] = importance_facts(path)
        return facts, []
    stored = [
        Stored(tensor.name, tensor.type_name, tensor.nbytes, math.prod(tensor.shape))
        for tensor in gguf.tensors
    ]
    if architecture == "dots1":
        from dotscli.models.check import check_dots1

        try:
            check_dots1(gguf)
        except DotsError as error:
            facts["notes"].append(f"It can't be run: {error.message}")
    else:
        facts["notes"].append("dots can't run it: it runs only dots1 models.")
    return facts, stored


def importance_facts(path: Path) -> dict[str, Any]:
    """What was measured, on what, and how many experts saw nothing of it."""
    from dotscli.quantize.imatrix.importance import load_importance

    importance = load_importance(path)
    counts = [entry.counts for name, entry in importance.entries.items() if "_exps" in name]
    seen = [int(count) for entry in counts for count in entry if count > 0]
    return {
        "datasets": ", ".join(importance.datasets),
        "chunks": importance.n_chunks,
        "tensors": len(importance.entries),
        "experts": sum(len(entry) for entry in counts),
        "experts_unseen": sum(len(entry) for entry in counts) - len(seen),
        "tokens_per_expert_least": min(seen, default=0),
        "tokens_per_expert_most": max(seen, default=0),
    }


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_KEYS else f"{text[:SHOWN_KEYS]}... ({len(text)} characters)"
