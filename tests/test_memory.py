"""How long a context is when nobody says, and what is counted for it."""

from __future__ import annotations

import pytest

from dotscli.engine.cores import usable_cores
from dotscli.engine.memory import bytes_per_token, check_cache_fits, context_size
from dotscli.engine.options import EngineOptions
from dotscli.errors import DotsError

GIB = 1 << 30
REAL = bytes_per_token(62, 4096, EngineOptions())


def test_a_token_of_the_real_model_takes_a_mebibyte() -> None:
    assert REAL == 62 * 4096 * 2 * 2
    quantized = bytes_per_token(62, 4096, EngineOptions(cache_type_k="q8_0", cache_type_v="q8_0"))
    assert quantized / REAL == 34 / 64


@pytest.mark.parametrize(
    ("free_gib", "expected"),
    [(0, 4096), (8, 4096), (32, 8448), (64, 16896), (1000, 32768)],
)
def test_the_context_grows_with_free_memory_between_its_bounds(
    free_gib: int, expected: int
) -> None:
    assert context_size(32768, REAL, free_gib * GIB) == expected


def test_no_context_is_longer_than_the_training() -> None:
    assert context_size(2048, REAL, 1000 * GIB) == 2048


def test_a_cache_larger_than_the_memory_is_refused_with_both_sizes() -> None:
    check_cache_fits(32768, REAL, 32 * GIB)
    with pytest.raises(DotsError, match=r"31\.0 GiB of cache, only 30\.0 GiB") as caught:
        check_cache_fits(32768, REAL, 30 * GIB)
    assert "q8_0" in caught.value.hint


def test_threads_are_given_or_counted() -> None:
    assert EngineOptions(n_threads=3).threads() == (3, 3)
    assert EngineOptions(n_threads=3, n_threads_batch=5).threads() == (3, 5)
    assert EngineOptions().threads() == (usable_cores(), usable_cores())
