"""Contexts: the longest that fits, a placement for each, and what is advised."""

from __future__ import annotations

from pathlib import Path

import pytest

from dotscli.commands.plan import checkpoint_cost
from dotscli.hot.contexts import STEP, advice, column, longest_context
from dotscli.hot.memory_use import GIB
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.placement import Request, place

REAL = Path(__file__).parent / "data" / "dots.llm1.inst" / "config.json"


@pytest.fixture(scope="module")
def real() -> ModelCost:
    """dots.llm1 as q4."""
    return checkpoint_cost(REAL, "q4")


@pytest.mark.parametrize(("device", "ram"), [(24, 64), (16, 64), (0, 96), (0, 8), (2, 64)])
def test_the_longest_context_fits_and_the_next_does_not(
    real: ModelCost, device: int, ram: int
) -> None:
    request = Request(device * GIB, ram * GIB, 0, "q8_0", "q8_0")

    def fits(n_ctx: int) -> bool:
        found = place(real, Request(device * GIB, ram * GIB, n_ctx, "q8_0", "q8_0"))
        return found.dense_on_device if device else not found.ram.missing

    longest = longest_context(real, request)
    assert longest == 0 or fits(longest)
    assert longest == real.n_ctx_train or not fits(longest + STEP)


def test_advice_says_what_is_wrong(real: ModelCost) -> None:
    def said(gib: int, ram: int, kind: str, n_ctx: int = 8192) -> str:
        return " ".join(advice(place(real, Request(gib * GIB, ram * GIB, n_ctx, kind, kind))))

    assert "18.9 GiB of experts have no place in memory" in said(0, 64, "q8_0")
    assert "can't be loaded" in said(0, 8, "q8_0")
    assert said(0, 128, "q8_0") == ""
    assert "fit on the device for only" in said(14, 128, "f16")
    assert "-ctk q8_0 -ctv q8_0" in said(14, 128, "f16")
    assert "fewer than 12" in said(16, 128, "q8_0")
    assert "hit rate of 17%" in said(24, 128, "q8_0")
    assert "makes room for 384 more" in said(24, 128, "f16")
    assert "whole model fits" in said(96, 128, "q8_0")


def test_a_smaller_cache_type_never_leaves_less(real: ModelCost) -> None:
    request = Request(24 * GIB, 64 * GIB, 0)
    f16, q8, q4 = (column(real, request, kind, None) for kind in ("f16", "q8_0", "q4_0"))
    for wide, narrow in ((f16, q8), (q8, q4)):
        assert narrow.longest >= wide.longest >= wide.longest_hot
        assert narrow.longest_hot >= wide.longest_hot
        for a, b in zip(wide.placements, narrow.placements, strict=True):
            assert b.n_resident >= a.n_resident
            assert a.request.n_ctx == b.request.n_ctx
