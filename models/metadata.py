"""The keys and values of a dots1 GGUF: general.*, dots1.* and tokenizer.*, in llama.cpp's words.

Which keys exist, their types and their order follow llama.cpp's converter, so that every program
that reads its files reads ours. Two things are added because their absence is silently wrong:
the gating function whatever the config calls it, and an explicit bos token. It does not know how
a GGUF is written; the type of a value is a word here ("u32", "arr[str]" ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dotscli.models.chat_template import chat_template
from dotscli.models.dots1 import Dots1
from dotscli.models.json_file import Values, read_object
from dotscli.models.model_card import base_model, front_matter, title
from dotscli.models.vocab import Vocab

# generation_config.json -> general.sampling.*, with the type that llama.cpp reads.
_SAMPLING = (
    ("top_k", "top_k", "i32"),
    ("top_p", "top_p", "f32"),
    ("min_p", "min_p", "f32"),
    ("temperature", "temp", "f32"),
    ("repetition_penalty", "penalty_repeat", "f32"),
)


@dataclass(frozen=True)
class KeyValue:
    """One key of a GGUF.

    Attributes:
        kind: u16, i32, f32, bool, str ..., or arr[...] of one of these.
        value: int, float, bool, str or a tuple of one of these, as `kind` says.
    """

    key: str
    kind: str
    value: int | float | str | tuple[str, ...] | tuple[float, ...]


def metadata(model: Dots1, vocab: Vocab, folder: Path, file_type: int) -> tuple[KeyValue, ...]:
    """Every key of the file in order, except those of an importance matrix.

    Args:
        folder: the checkpoint; its README.md, generation_config.json and chat template are read
            if they are there.
        file_type: llama.cpp's number of the preset (general.file_type).

    Raises:
        DotsError: one of these files is there and unreadable, or holds a number out of range.
    """
    return (
        *_general(model, folder),
        *_dots1(model),
        KeyValue("general.quantization_version", "u32", 2),
        KeyValue("general.file_type", "u32", file_type),
        *_tokenizer(vocab),
        KeyValue("tokenizer.chat_template", "str", chat_template(folder)),
    )


def size_label(model: Dots1) -> str:
    """The number of experts and the size of one with everything shared: "128x8.7B"."""
    specs = model.tensors()
    experts = sum(s.n_elements for s in specs if s.n_experts > 1)
    shared = sum(s.n_elements for s in specs) - experts
    n = shared + experts // model.n_experts
    scale, suffix = next(
        (scale, suffix)
        for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (0, "K"))
        if n > scale
    )
    scaled = n / (scale or 1e3)
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{model.n_experts}x{scaled:.{digits}f}{suffix}"


def _general(model: Dots1, folder: Path) -> Iterable[KeyValue]:
    card = front_matter(folder / "README.md")
    yield KeyValue("general.architecture", "str", "dots1")
    yield KeyValue("general.type", "str", "model")
    yield from _sampling(folder)
    name = _first(card, "name", "model_name") or title(_readable(folder.resolve().name)) or "dots1"
    yield KeyValue("general.name", "str", name)
    yield KeyValue("general.size_label", "str", size_label(model))
    for key, field in (("license", "license"), ("license.name", "license_name"),
                       ("license.link", "license_link")):  # fmt: skip
        values = card.get(field, ())
        if values:
            yield KeyValue(f"general.{key}", "str", ",".join(values))
    parents = [base_model(parent) for parent in card.get("base_model", ())]
    if parents:
        yield KeyValue("general.base_model.count", "u32", len(parents))
    for i, parent in enumerate(parents):
        for key, value in parent.items():
            yield KeyValue(f"general.base_model.{i}.{key}", "str", value)
    tags = (*card.get("tags", ()), *card.get("pipeline_tag", ()))
    if tags:
        yield KeyValue("general.tags", "arr[str]", tags)
    if card.get("language"):
        yield KeyValue("general.languages", "arr[str]", card["language"])


def _first(card: Mapping[str, tuple[str, ...]], *fields: str) -> str:
    return next((card[field][0] for field in fields if card.get(field)), "")


def _readable(name: str) -> str:
    """A file name that may not be UTF-8."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _sampling(folder: Path) -> Iterable[KeyValue]:
    path = folder / "generation_config.json"
    config = read_object(path, max_nbytes=1 << 20) if path.exists() else {}
    values = Values(config, str(path))
    for field, key, kind in _SAMPLING:
        if values.has(field):
            number = values.number(field, -1, 1e6)  # -1 is how some write "off"
            value = int(number) if kind == "i32" else number
            yield KeyValue(f"general.sampling.{key}", kind, value)


def _dots1(model: Dots1) -> Iterable[KeyValue]:
    rows: list[tuple[str, str, int | float]] = [
        ("block_count", "u32", model.n_layers),
        ("context_length", "u32", model.n_ctx_train),
        ("embedding_length", "u32", model.n_embd),
        ("feed_forward_length", "u32", model.n_ff),
        ("attention.head_count", "u32", model.n_heads),
        ("attention.head_count_kv", "u32", model.n_heads),
        ("rope.freq_base", "f32", model.rope_theta),
        ("attention.layer_norm_rms_epsilon", "f32", model.rms_eps),
        ("expert_count", "u32", model.n_experts),
        ("expert_used_count", "u32", model.n_experts_used),
        ("expert_group_count", "u32", model.expert_groups),
        ("expert_group_used_count", "u32", model.expert_groups_used),
        ("expert_gating_func", "u32", model.gating_func),
    ]
    if model.head_dim_given:
        rows += [
            ("attention.key_length", "u32", model.head_dim),
            ("attention.value_length", "u32", model.head_dim),
        ]
    rows += [
        ("expert_feed_forward_length", "u32", model.n_ff_expert),
        ("leading_dense_block_count", "u32", model.n_dense_layers),
        ("expert_shared_count", "u32", model.n_shared_experts),
        ("expert_weights_scale", "f32", model.expert_scale),
        ("expert_weights_norm", "bool", model.expert_norm),
    ]
    for key, kind, value in rows:
        yield KeyValue(f"dots1.{key}", kind, value)


def _tokenizer(vocab: Vocab) -> Iterable[KeyValue]:
    p = "tokenizer.ggml"
    yield KeyValue(f"{p}.model", "str", "gpt2")
    yield KeyValue(f"{p}.pre", "str", vocab.pre)
    yield KeyValue(f"{p}.tokens", "arr[str]", vocab.tokens)
    yield KeyValue(f"{p}.token_type", "arr[i32]", vocab.token_types)
    yield KeyValue(f"{p}.merges", "arr[str]", vocab.merges)
    if vocab.bos_id is not None:
        yield KeyValue(f"{p}.bos_token_id", "u32", vocab.bos_id)
    yield KeyValue(f"{p}.eos_token_id", "u32", vocab.eos_id)
    yield KeyValue(f"{p}.eot_token_id", "u32", vocab.eot_id)
    yield KeyValue(f"{p}.padding_token_id", "u32", vocab.pad_id)
    yield KeyValue(f"{p}.add_bos_token", "bool", False)
    yield KeyValue(f"{p}.add_eos_token", "bool", False)
