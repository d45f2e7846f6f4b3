"""How a JSON document is spoiled: values, keys, types, nesting, size; also what is no JSON.

The tree is changed and written out by a writer of its own, since some of it can't be said with
Python's: keys that come twice, raw text in the place of a value.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.fuzz.mutate import damaged, length, number, real, text, times

RAW = (
    "1e999", "-1e999", "-0", "1E400", "0.1e-400", "NaN", "Infinity", "-Infinity", "9" * 5000,
    "1" * 400, "01", "+1", ".5", "1.", "'a'", "undefined", "nul", "tru", '"\\ud800"',
    '"\\udc00\\ud800"', '"\\x00"', '"\\u0000"', '"\n"', "/* a */ 1", '"', "[", "{", "}", "]", ",",
    "1,,2", '{"a":1,"a":2}', '{"a":1,}', "[1,]", "\ufeff1",
)  # fmt: skip
_UNITS = ("{},", "[],", '"a",', "1,", "0.5,", '{"a":1},', "null,", "[[]],", '"\\ud800",')
_DEEP = (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"))
HUGE_ONCE_IN = 400
MAX_HUGE_NBYTES = 60 << 20
MAX_UNIQUE = 1 << 20


class Raw(str):
    """Text that stands in the document as it is."""


class Pairs(list[tuple[str, object]]):
    """An object whose keys may come twice."""


def dump(value: object) -> str:
    """JSON, or what passes for it here."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs | dict):
        items = value if isinstance(value, Pairs) else value.items()
        return "{" + ",".join(f"{json.dumps(k)}:{dump(v)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def spoiled(rng: Random, document: str, huge_once_in: int = HUGE_ONCE_IN) -> bytes:
    """A JSON text with one to eight changes, as bytes that may be no UTF-8."""
    if rng.randrange(huge_once_in) == 0:
        return _place(rng, json.loads(document), Raw(huge(rng)))
    if rng.random() < 0.1:
        return damaged(rng, document.encode())
    tree: Any = json.loads(document)
    for _ in range(times(rng)):
        tree = _changed(rng, tree)
    data = dump(tree).encode("utf-8", "surrogatepass")
    return damaged(rng, data) if rng.random() < 0.1 else data


def odd(rng: Random, depth: int = 0) -> object:
    """A value of any kind."""
    match rng.randrange(12 if depth < 3 else 8):
        case 0 | 1:
            return number(rng)
        case 2:
            return real(rng)
        case 3 | 4:
            return text(rng)
        case 5:
            return rng.choice((None, True, False))
        case 6:
            return Raw(rng.choice(RAW))
        case 7:
            return rng.choice(([], {}))
        case 8:
            return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 9:
            return {text(rng, 64): odd(rng, depth + 1) for _ in range(rng.randrange(4))}
        case 10:
            left, right = rng.choice(_DEEP)
            n = length(rng, 1 << 17)
            return Raw(left * n + "1" + right * n)
        case _:
            value = odd(rng, 3)
            return [value] * length(rng, (1 << 18) // len(dump(value)))


def huge(rng: Random) -> str:
    """A list or an object of up to 60 MB, which takes far more when it is parsed."""
    if rng.random() < 0.3:
        n = length(rng, MAX_UNIQUE)
        if rng.random() < 0.5:
            return "[" + ",".join(f'"k{i}"' for i in range(n)) + "]"
        return "{" + ",".join(f'"k{i}":{{}}' for i in range(n)) + "}"
    unit = rng.choice(_UNITS)
    size = MAX_HUGE_NBYTES if rng.random() < 0.3 else length(rng, MAX_HUGE_NBYTES)
    return "[" + unit * (size // len(unit)) + "1]"


def _place(rng: Random, tree: Any, value: object) -> bytes:
    parent, key = _somewhere(rng, tree)
    if parent is None:
        return dump(value).encode("utf-8", "surrogatepass")
    parent[key] = value
    return dump(tree).encode("utf-8", "surrogatepass")


def _somewhere(rng: Random, tree: Any) -> tuple[Any, Any]:
    """A container and a key in it; (None, None) is the root."""
    parent, key = None, None
    while isinstance(tree, dict | list) and not isinstance(tree, Pairs) and tree:
        if parent is not None and rng.random() < 0.3:
            break
        parent = tree
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        tree = tree[key]
    return parent, key


def _changed(rng: Random, tree: Any) -> Any:
    parent, key = _somewhere(rng, tree)
    if parent is None or rng.random() < 0.02:
        return odd(rng)
    value = parent[key]
    match rng.randrange(10):
        case 0 | 1 | 2:
            parent[key] = odd(rng)
        case 3:
            del parent[key]
        case 4:
            parent[key] = rng.choice(([value], {"a": value}, str(value), [value, value]))
        case 5 if isinstance(parent, dict):
            parent[rng.choice((text(rng, 64), str(key).upper(), f"{key}_"))] = parent.pop(key)
        case 6 if isinstance(parent, dict):
            where, name = _somewhere(rng, tree)
            twice = Pairs([*copy.deepcopy(parent).items(), (key, odd(rng, 2))])
            where[name] = twice  # a copy: `where` may lie inside of `parent`
        case 7:
            other, name = _somewhere(rng, tree)
            # Copies: one may lie inside of the other, and what comes twice is one object.
            parent[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(value)
        case 8 if isinstance(value, int | float) and not isinstance(value, bool):
            parent[key] = rng.choice((value + 1, value - 1, -value, value * 2, float(value)))
        case 9 if isinstance(parent, list):
            parent.insert(key, value)
        case _:
            parent[key] = odd(rng)
    return tree
