"""How an input is spoiled: odd numbers, odd texts, and blind damage to bytes.

Everything is drawn from the `Random` that is handed in, so that a seed gives the same input again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 999, 1000, 4096,
    2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32,
    2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1, -(2**31), -(2**63), 10**18,
)  # fmt: skip
REALS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 5e-324, 1e-30, 1e30, 3.4028235e38, 3.5e38, 1.7e308,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\0", "a\0b", "a", "\ud800", "\udfff\ud800", "\ufffd", "\ufeff", "é", "e\u0301",
    "\u202eabc", "\U0010ffff", "\x1b[2J\x07", "../x", "/dev/null", "/dev/zero", "nul", "--help",
    "%s%n%d", "{0.__class__}", "$HOME", "<|endofresponse|>", "<|system|>", "1e999", "0x10", "NaN",
    "true", "null", "dots1", "C:\\x", "a\tb", "\r\n", "\x7f", "*", "[PAD7]",
)  # fmt: skip
_UNITS = ("A", "é", "\U0001f600", "\n", " ", "\\", '"', "ab", "(", "[", "{", "a.")


def number(rng: Random) -> int:
    """A number at which something may break; of any size, rarely."""
    if rng.random() < 0.75:
        return rng.choice(NUMBERS)
    return rng.choice((1, 1, -1)) * rng.getrandbits(rng.randrange(1, 72))


def real(rng: Random) -> float:
    """The same in floating point."""
    return rng.choice(REALS) if rng.random() < 0.8 else float(number(rng)) * rng.random()


def length(rng: Random, most: int) -> int:
    """A length from 1 to most, small ones as likely as each larger power of two."""
    return max(1, min(most, int(2 ** rng.uniform(0, max(1, most).bit_length()))))


def text(rng: Random, most: int = 1 << 16) -> str:
    """An odd text, now and then a long one."""
    if rng.random() < 0.85:
        return rng.choice(TEXTS)
    return rng.choice(_UNITS) * length(rng, most)


def packed(rng: Random, nbytes: int) -> bytes:
    """An odd number as little-endian bytes, sometimes as others."""
    order = "little" if rng.random() < 0.9 else "big"
    value = number(rng) & ((1 << 8 * nbytes) - 1)
    return value.to_bytes(nbytes, order)  # type: ignore[arg-type]  # one of the two words


def floats(rng: Random, n: int) -> bytes:
    """Bytes of n odd float32, all alike or each its own."""
    values = [_float32(real(rng)) for _ in range(1 if rng.random() < 0.5 else min(n, 64))]
    return b"".join((values * (n // len(values) + 1))[:n])


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf"))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """The same bytes with others written over them."""
    return data[:at] + new + data[at + len(new) :]


def times(rng: Random, most: int = 8) -> int:
    """How many changes: one mostly."""
    n = 1
    while n < most and rng.random() < 0.35:
        n += 1
    return n


def damaged(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to eight blind changes; `others` give pieces to splice in."""
    for _ in range(times(rng)):
        data = _damaged_once(rng, data, others)
    return data


def _damaged_once(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    n = len(data)
    at = rng.randrange(n + 1)
    end = min(n, at + length(rng, max(1, min(n, 4096))))
    match rng.randrange(11):
        case 0 if n:
            at = min(at, n - 1)
            return patched(data, at, bytes([data[at] ^ 1 << rng.randrange(8)]))
        case 1 if n:
            return patched(data, min(at, n - 1), bytes([rng.randrange(256)]))
        case 2:
            new = packed(rng, rng.choice((1, 2, 4, 8)))
            return patched(data, max(0, min(at, n - len(new))), new)
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[end:]
        case 5:
            return data[:at] + data[at:end] * rng.choice((2, 2, 3, 100)) + data[end:]
        case 6:
            return data[:at] + rng.randbytes(length(rng, 64)) + data[at:]
        case 7:
            return data[:at] + bytes([rng.choice((0, 255, 32))]) * (end - at) + data[end:]
        case 8:
            word = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
            return data[:at] + word + data[at:]
        case 9:
            return data + bytes(length(rng, 4096))
        case _:
            other = rng.choice([data, *others])
            start = rng.randrange(len(other) + 1)
            piece = other[start : start + length(rng, max(1, min(len(other), 4096)))]
            return data[:at] + piece + data[at if rng.random() < 0.5 else end :]


def pick(rng: Random, weighted: Sequence[tuple[float, T]]) -> T:
    """One of several, by weight."""
    return rng.choices([what for _, what in weighted], [weight for weight, _ in weighted])[0]
