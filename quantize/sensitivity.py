"""How much an error in one kind of tensor harms what the model says, relative to the others.

The KL divergence grows with the sum over tensors of (sensitivity x relative squared error); that
it is such a sum is the linearity theorem of Malinovskii et al., 2024 (HIGGS). The sensitivities
are measured by bench/sensitivity.py: only the tensors of one role are quantized, and the KL
divergence is divided by their relative error. This module holds the figures and no rule.
"""

from __future__ import annotations

# KL divergence (nats) per relative squared error when all tensors of the role have that error.
ROLES = {
    "token_embd": 0.27,
    "output": 0.47,
    "attn_q": 0.27,
    "attn_k": 0.25,
    "attn_v": 0.27,
    "attn_output": 0.19,
    "ffn_gate": 0.023,
    "ffn_up": 0.034,
    "ffn_down": 0.084,
    "ffn_gate_exps": 0.037,
    "ffn_up_exps": 0.022,
    "ffn_down_exps": 0.148,
    "ffn_gate_shexp": 0.031,
    "ffn_up_shexp": 0.014,
    "ffn_down_shexp": 0.043,
}
