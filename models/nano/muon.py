"""Muon: momentum whose update is made orthogonal, for stacks of weight matrices.

Newton-Schulz iteration with the published quintic coefficients (Jordan et al., 2024). Each
matrix of a stack (..., m, n) is treated by itself, so every expert has its own update. Knows
nothing of the model; everything that is not a weight matrix is trained with AdamW instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrix, roughly; works on (..., m, n) in bf16."""
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """``transposed`` groups hold (in, out) matrices; the scale is sqrt(max(1, out / in))."""

    def __init__(self, params: Iterable[object], lr: float, momentum: float, decay: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "decay": decay, "transposed": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure here
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buffer, group["momentum"]))
                out, inner = p.shape[-2], p.shape[-1]
                if group["transposed"]:
                    out, inner = inner, out
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, out / inner) ** 0.5)
