"""JSON schemas: turned into a grammar, which a model then follows for a few tokens."""

from __future__ import annotations

import json
from random import Random

from dotscli.engine import json_schema_grammar
from tests.fuzz.grammar import Grammar
from tests.fuzz.mutate import number, text
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.target import refusals

VALID = (
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 8},
     "b": {"type": "integer", "minimum": 0, "maximum": 99}, "c": {"enum": ["x", 1, None]}},
     "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1, "maxItems": 4,
     "$defs": {"n": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/n"}]}}},
    {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"type": "boolean"}}}]},
    {"type": "string", "pattern": "^a[0-9]{1,3}(b|c)?$"},
    {"oneOf": [{"format": "date-time"}, {"format": "uuid"}, {"type": ["string", "null"]}]},
    {"prefixItems": [{"type": "string"}, {"type": "integer"}]},
)  # fmt: skip
KEYS = (
    "type", "properties", "items", "required", "enum", "const", "anyOf", "allOf", "oneOf", "$ref",
    "pattern", "additionalProperties", "format", "minItems", "maxItems", "minLength", "maxLength",
    "minimum", "maximum", "prefixItems", "$defs", "title", "exclusiveMinimum", "not",
)  # fmt: skip


class Schema(Grammar):
    """A schema for an answer of a tiny model."""

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return spoiled(rng, json.dumps(rng.choice(VALID)))
        if rng.random() < 0.3:
            return json.dumps({"type": "string", "pattern": pattern(rng)}).encode()
        return json.dumps(_schema(rng, 0)).encode()

    def run(self, data: bytes) -> None:
        self.limit(data)
        with refusals():
            self.answer(json_schema_grammar(data.decode("utf-8", "replace")))


def pattern(rng: Random) -> str:
    """A regular expression, with groups in groups and numbers that multiply."""
    body = _regex(rng, 0)
    return body if rng.random() < 0.2 else f"^{body}$"


def _regex(rng: Random, depth: int) -> str:
    parts = []
    for _ in range(rng.randrange(1, 5)):
        atom = rng.choice(
            ("a", "b", ".", "[a-z]", "[^x]", "\\d", "\\w", "\\.", "é", "(?:a)", "(?=a)", "$")
        )
        if depth < 4 and rng.random() < 0.5:
            atom = "(" + _regex(rng, depth + 1) + ")"
        count = rng.choice((0, 1, 2, 9, 100, 999, 2000, 5000))
        parts.append(
            atom
            + rng.choice(
                ("", "", "*", "+", "?", f"{{{count}}}", f"{{0,{count}}}", f"{{{count},}}", "{,}")
            )
        )
        if rng.random() < 0.2:
            parts.append("|")
    return "".join(parts)


def _schema(rng: Random, depth: int) -> object:
    if depth > 4 or rng.random() < 0.2:
        return rng.choice(
            (
                {}, True, False, None, [], "string", "object", "array", "integer", "#", "#/$defs/a",
                "#/properties/a", number(rng), text(rng, 64), ["string", "null"], pattern(rng),
                "date", "time", "uuid", "uuid4", 1.5, -1, ["a", "b"],
            )
        )  # fmt: skip
    found: dict[str, object] = {}
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice(KEYS)
        value = _schema(rng, depth + 1)
        if key in ("properties", "$defs"):
            value = {rng.choice(("a", "b", text(rng, 8))): value for _ in range(rng.randrange(3))}
        elif key in ("anyOf", "allOf", "oneOf", "prefixItems", "enum"):
            value = [value] * rng.choice((0, 1, 2, 2, 40))
        found[key] = value
    return found


TARGET = Schema
