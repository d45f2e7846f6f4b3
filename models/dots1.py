"""What a dots.llm1 checkpoint is: its hyperparameters, read from config.json and asserted.

Every number that decides what the model computes must be in the file: the defaults of the
transformers class (hidden 4608, rope base 1e4, first dense layers 0 ...) are not those of any
published model, so a missing key is an error and never a default. Old configs (rope_theta,
rope_scaling, torch_dtype) and new ones (rope_parameters, dtype) say the same thing.
It does not know where tensors are stored; their names and shapes are in `dotscli.models.tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, read_object
from dotscli.models.tensors import Naming, TensorSpec, tensor_specs

# What llama.cpp can hold (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS); the other bounds only keep a
# hostile config from asking for absurd work.
MAX_LAYERS = 512
MAX_EXPERTS = 512
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 20  # dots.llm1 has 152,064

GATING_SIGMOID = 2  # expert_gating_func of llama.cpp


@dataclass(frozen=True)
class Dots1:
    """The hyperparameters of one dots.llm1; attention is plain MHA, experts are chosen by sigmoid
    plus a bias that only the choice sees.

    Attributes:
        n_ff: width of the leading dense layers; n_ff_expert: of one expert.
        n_shared_experts: experts that see every token, stored as one of n_ff_expert times as many.
        n_dense_layers: layers at the beginning that have no experts.
        expert_groups, expert_groups_used: 1 and 1 in every published model.
        head_dim: width of one head; head_dim_given is False where it follows from n_embd / n_heads.
        expert_scale: factor on the routed experts' sum; expert_norm: their weights add up to 1.
        bos_id, eos_ids, pad_id: token ids as config.json has them, none where null or absent.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_ff_expert: int
    n_heads: int
    head_dim: int
    head_dim_given: bool
    n_experts: int
    n_experts_used: int
    n_shared_experts: int
    n_dense_layers: int
    expert_groups: int
    expert_groups_used: int
    expert_scale: float
    expert_norm: bool
    vocab_size: int
    n_ctx_train: int
    rms_eps: float
    rope_theta: float
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    gating_func: int = GATING_SIGMOID

    @classmethod
    def load(cls, folder: Path) -> Dots1:
        """Read folder/config.json. Raises DotsError with the file, the key and the value."""
        path = folder / "config.json"
        if not path.exists():
            what = "holds no config.json" if folder.is_dir() else "is not a checkpoint folder"
            raise DotsError(
                f"{folder} {what}",
                hint="give the folder of a dots.llm1 checkpoint: config.json, tokenizer.json, "
                "*.safetensors",
            )
        return cls.from_config(read_object(path, max_nbytes=1 << 24), str(path))

    @classmethod
    def from_config(cls, config: Mapping[str, object], origin: str) -> Dots1:
        """Read the hyperparameters.

        Args:
            config: config.json, parsed.
            origin: its path, for error messages.

        Raises:
            DotsError: not a dots1, a key missing, of a wrong type or out of range, or a feature
                that dots.llm1 does not have (GQA, scaled RoPE, biases, tied embeddings ...).
        """
        values = Values(config, origin)
        _check_kind(values)
        n_embd = values.integer("hidden_size", 32, MAX_WIDTH)
        n_heads = values.integer("num_attention_heads", 1, 4096)
        n_experts = values.integer("n_routed_experts", 2, MAX_EXPERTS)
        n_layers = values.integer("num_hidden_layers", 1, MAX_LAYERS)
        vocab_size = values.integer("vocab_size", 1, MAX_VOCAB)
        groups, groups_used = _groups(values, n_experts)
        _check_attention(values, n_heads, n_layers)
        _check_scoring(values)
        return cls(
            n_layers=n_layers,
            n_embd=n_embd,
            n_ff=values.integer("intermediate_size", 1, MAX_WIDTH),
            n_ff_expert=values.integer("moe_intermediate_size", 1, MAX_WIDTH),
            n_heads=n_heads,
            head_dim=_head_dim(values, n_embd, n_heads),
            head_dim_given=values.has("head_dim"),
            n_experts=n_experts,
            n_experts_used=values.integer("num_experts_per_tok", 1, n_experts),
            n_shared_experts=values.integer("n_shared_experts", 1, MAX_EXPERTS),
            n_dense_layers=values.integer("first_k_dense_replace", 0, n_layers),
            expert_groups=groups,
            expert_groups_used=groups_used,
            expert_scale=values.number("routed_scaling_factor", 1e-6, 1e6),
            expert_norm=values.boolean("norm_topk_prob"),
            vocab_size=vocab_size,
            n_ctx_train=values.integer("max_position_embeddings", 1, 1 << 31),
            rms_eps=values.number("rms_norm_eps", 1e-12, 1.0),
            rope_theta=_rope_theta(values),
            bos_id=_token_id(values, "bos_token_id", vocab_size),
            eos_ids=_token_ids(values, "eos_token_id", vocab_size),
            pad_id=_token_id(values, "pad_token_id", vocab_size),
        )

    def tensors(self, naming: Naming = Naming.PER_EXPERT) -> tuple[TensorSpec, ...]:
        """Every GGUF tensor in the order of the layers, with its shape and its sources."""
        return tensor_specs(self, naming)


def _check_kind(values: Values) -> None:
    hint = "dots converts only dots.llm1 (model_type dots1)"
    if values.text("model_type") != "dots1":
        error = values.wrong("model_type", '"dots1"')
        raise DotsError(error.message, hint=hint)
    if values.has("architectures") and "Dots1ForCausalLM" not in values.array("architectures"):
        raise DotsError(values.wrong("architectures", '["Dots1ForCausalLM"]').message, hint=hint)
    for key, expected in (("hidden_act", "silu"), ("moe_layer_freq", 1),
                          ("attention_bias", False), ("tie_word_embeddings", False),
                          ("use_sliding_window", False)):  # fmt: skip
        # 1 == True in Python, so the type is compared too.
        found = values.values.get(key)
        if values.has(key) and (found != expected or type(found) is not type(expected)):
            raise values.wrong(key, f"{str(expected).lower()} as in every dots.llm1")


def _check_attention(values: Values, n_heads: int, n_layers: int) -> None:
    if values.integer("num_key_value_heads", 1, 4096) != n_heads:
        error = values.wrong("num_key_value_heads", f"{n_heads}, the number of attention heads")
        raise DotsError(
            error.message, hint="llama.cpp loads a dots1 only with plain multi-head attention"
        )
    if values.has("layer_types"):
        kinds = values.array("layer_types")
        if len(kinds) != n_layers or any(kind != "full_attention" for kind in kinds):
            raise values.wrong("layer_types", f'{n_layers} times "full_attention"')
    elif values.has("sliding_window") and values.values.get("use_sliding_window") is not False:
        # transformers would give layers from max_window_layers (62 if absent) on a window.
        first = values.integer("max_window_layers", 0, 1 << 20)
        if first < n_layers:
            raise values.wrong("sliding_window", "null: llama.cpp's dots1 has no sliding window")


def _check_scoring(values: Values) -> None:
    """Published configs say sigmoid in three ways; only the released weights' routing is right."""
    if values.has("scoring_func") and values.values["scoring_func"] not in ("sigmoid", "noaux_tc"):
        raise values.wrong("scoring_func", '"sigmoid", "noaux_tc" or nothing')
    if values.has("topk_method") and values.values["topk_method"] != "noaux_tc":
        raise values.wrong("topk_method", '"noaux_tc" or nothing')


def _head_dim(values: Values, n_embd: int, n_heads: int) -> int:
    if values.has("head_dim"):
        head_dim = values.integer("head_dim", 2, MAX_WIDTH)
    elif n_embd % n_heads:
        raise values.wrong("hidden_size", f"a multiple of num_attention_heads, {n_heads}")
    else:
        head_dim = n_embd // n_heads
    if head_dim % 2:
        raise DotsError(f"{values.origin}: the head width is {head_dim}, RoPE needs an even one")
    return head_dim


def _groups(values: Values, n_experts: int) -> tuple[int, int]:
    """n_group and topk_group; no published config has them and 1 of 1 means no groups."""
    groups = values.integer("n_group", 1, n_experts) if values.has("n_group") else 1
    if n_experts % groups:
        raise values.wrong("n_group", f"a divisor of n_routed_experts, {n_experts}")
    used = values.integer("topk_group", 1, groups) if values.has("topk_group") else 1
    if groups > 1 and not values.has("topk_group"):
        raise DotsError(f"{values.origin}: the key topk_group is missing, n_group is {groups}")
    size = n_experts // groups
    # A group is judged by its two best experts, and those of the groups kept must suffice.
    if groups > 1 and (size < 2 or used * size < values.integer("num_experts_per_tok", 1, 1 << 20)):
        raise values.wrong("n_group", "groups of two experts or more, enough for one token")
    return groups, used


def _rope_theta(values: Values) -> float:
    for key in ("rope_scaling", "rope_parameters"):
        if not values.has(key):
            continue
        rope = values.section(key)
        kind = rope.values.get("rope_type", rope.values.get("type", "default"))
        if kind not in ("default", None):
            raise DotsError(
                f"{values.origin}: {key} asks for RoPE of type {kind}",
                hint="dots.llm1 was trained with plain RoPE; remove the scaling to convert it",
            )
        if rope.values.get("partial_rotary_factor", 1.0) != 1.0:
            raise rope.wrong("partial_rotary_factor", "1")
        if key == "rope_parameters" and rope.has("rope_theta"):
            return rope.number("rope_theta", 1.0, 1e12)
    return values.number("rope_theta", 1.0, 1e12)


def _token_ids(values: Values, key: str, vocab_size: int) -> tuple[int, ...]:
    found = values.values.get(key)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size:
            raise values.wrong(key, f"a token id below {vocab_size}")
    return tuple(ids)


def _token_id(values: Values, key: str, vocab_size: int) -> int | None:
    ids = _token_ids(values, key, vocab_size)
    return ids[0] if ids else None
