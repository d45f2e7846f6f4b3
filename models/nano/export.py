"""Write a training checkpoint in the published layout: one bf16 tensor per expert, HF names.

    python -m dotscli.models.nano.export --checkpoint DIR/nano.pt [--out FOLDER]

Writes config.json (the old published style), generation_config.json and model.safetensors beside
the tokenizer files. Development only: needs torch and safetensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dotscli.models.nano.model import Shape

FOLDER = Path(__file__).parent
END_OF_TEXT, END_OF_RESPONSE = 2800, 2806


def published(state: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """State of ``Nano`` -> tensors under their published names, bf16, the router's bias in f32."""
    out = {
        "model.embed_tokens.weight": state["embed"],
        "lm_head.weight": state["head"],
        "model.norm.weight": state["norm.weight"],
    }
    for i in range(shape.num_hidden_layers):
        here, there = f"blocks.{i}.", f"model.layers.{i}."
        out[there + "input_layernorm.weight"] = state[here + "input_norm.weight"]
        out[there + "post_attention_layernorm.weight"] = state[here + "post_norm.weight"]
        for j, name in enumerate("qkv"):
            out[f"{there}self_attn.{name}_proj.weight"] = state[here + "qkv"][j]
        out[there + "self_attn.o_proj.weight"] = state[here + "o"]
        for name in ("q_norm", "k_norm"):
            out[f"{there}self_attn.{name}.weight"] = state[f"{here}{name}.weight"]
        sparse = i >= shape.first_k_dense_replace
        mlp = there + ("mlp.shared_experts." if sparse else "mlp.")
        out[mlp + "gate_proj.weight"] = state[here + "gate_up"][0]
        out[mlp + "up_proj.weight"] = state[here + "gate_up"][1]
        out[mlp + "down_proj.weight"] = state[here + "down"].t()
        if not sparse:
            continue
        out[there + "mlp.gate.weight"] = state[here + "router"]
        out[there + "mlp.gate.e_score_correction_bias"] = state[here + "bias"]
        for e in range(shape.n_routed_experts):
            expert = f"{there}mlp.experts.{e}."
            out[expert + "gate_proj.weight"] = state[here + "expert_gate"][e]
            out[expert + "up_proj.weight"] = state[here + "expert_up"][e]
            out[expert + "down_proj.weight"] = state[here + "expert_down"][e].t()
    bias = "e_score_correction_bias"
    return {
        name: t.detach().to(torch.float32 if name.endswith(bias) else torch.bfloat16).contiguous()
        for name, t in out.items()
    }


def config(
    shape: Shape, end_of_text: int = END_OF_TEXT, end_of_response: int = END_OF_RESPONSE
) -> dict[str, object]:
    """config.json with the keys of the release of June 2025; the ends are token ids."""
    return {
        "architectures": ["Dots1ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_of_response,
        "pad_token_id": end_of_text,
        "first_k_dense_replace": shape.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "dots1",
        "moe_intermediate_size": shape.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_routed_experts": shape.n_routed_experts,
        "n_shared_experts": shape.n_shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_attention_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "scoring_func": "noaux_tc",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def write_json(path: Path, value: dict[str, object]) -> None:
    """Indented by two, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Read the checkpoint, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    shape = Shape()
    state = torch.load(args.checkpoint, weights_only=True)["model"]
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(published(state, shape), args.out / "model.safetensors", metadata={"format": "pt"})
    write_json(args.out / "config.json", config(shape))
    generation: dict[str, object] = {
        "eos_token_id": [END_OF_RESPONSE, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "transformers_version": "4.46.3",
    }
    write_json(args.out / "generation_config.json", generation)


if __name__ == "__main__":
    main()
