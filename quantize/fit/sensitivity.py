"""How much an error in one kind of tensor harms what the model says, relative to the others.

The harm is taken to be the sum over tensors of sensitivity times relative squared error: perplexity
grows so while errors are small (the linearity theorem of Malinovskii et al., arXiv 2411.17525). The
sensitivities are measured by bench/quality/sensitivity.py: only the tensors of one role are
quantized, and the KL divergence is divided by their relative error. Two small models can't say what
142 billion weights feel, only which roles feel more than others. This module holds figures and no
rule.
"""

from __future__ import annotations

# KL divergence (nats) per relative squared error when all tensors of the role have that error: the
# geometric mean of two small models for attention, routed experts, embedding and output, that of
# one for dense layers and shared experts (docs/bench/budget.md).
ROLES = {
    "token_embd": 0.23,
    "output": 0.31,
    "attn_q": 0.16,
    "attn_k": 0.14,
    "attn_v": 0.17,
    "attn_output": 0.14,
    "ffn_gate": 0.023,
    "ffn_up": 0.034,
    "ffn_down": 0.10,
    "ffn_gate_exps": 0.037,
    "ffn_up_exps": 0.028,
    "ffn_down_exps": 0.11,
    "ffn_gate_shexp": 0.031,
    "ffn_up_shexp": 0.014,
    "ffn_down_shexp": 0.043,
}
