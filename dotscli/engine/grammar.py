"""Grammars: what is checked before llama.cpp parses one, and JSON schemas turned into them.

The parser of llama.cpp and the converter of llama-cpp-python both work by recursion and by
writing repetitions out, so depth and numbers are bounded here first; what they reject after that
becomes an error with their own words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from dotscli.engine.lib import submodule
from dotscli.errors import DotsError

MAX_GRAMMAR = 1 << 20  # characters
MAX_RULES = 4096
MAX_NESTING = 64
MAX_REPEAT = 2000  # llama.cpp's own limit for x{m,n}
# The converter lets control characters into strings as they are, which JSON does not.
LOOSE_CHARACTER = r'[^"\\] | "\\"'
STRICT_CHARACTER = r'[^"\\\x00-\x1f\x7f] | "\\"'
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def check_grammar(text: str) -> None:
    """Refuses GBNF that could exhaust the stack or the memory of llama.cpp's parser.

    Raises:
        DotsError: too long, too many rules, parentheses too deep, or a NUL character.
    """
    if "\0" in text:
        raise DotsError("the grammar has a NUL character in it")
    if len(text) > MAX_GRAMMAR:
        raise DotsError(f"the grammar has {len(text)} characters, at most {MAX_GRAMMAR} work")
    if text.count("::=") > MAX_RULES:
        raise DotsError(f"the grammar has {text.count('::=')} rules, at most {MAX_RULES} work")
    if _depth(text) > MAX_NESTING:
        raise DotsError(f"the grammar nests parentheses deeper than {MAX_NESTING}")


def _depth(text: str) -> int:
    """Deepest nesting of parentheses, those in literals, classes and comments left aside."""
    depth = deepest = 0
    closing = ""
    characters = iter(text)
    for character in characters:
        if closing:
            if character == "\\" and closing != "\n":
                next(characters, None)
            elif character == closing:
                closing = ""
        elif character in '"[#':
            closing = {'"': '"', "[": "]", "#": "\n"}[character]
        elif character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")":
            depth -= 1
    return deepest


def json_schema_grammar(schema: str) -> str:
    """GBNF whose answers fit a JSON schema.

    Args:
        schema: JSON text of an object. References may only point into the schema itself.

    Raises:
        DotsError: no JSON, or a schema that the converter does not support.
    """
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise DotsError(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DotsError("the JSON schema is no JSON object", hint='for instance {"type": "object"}')
    for node in _objects(parsed):
        _check_node(node)
    converter = submodule("llama_grammar")
    try:
        grammar = str(converter.json_schema_to_gbnf(schema))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise DotsError(f"the JSON schema cannot be turned into a grammar: {error}") from error
    except RecursionError as error:
        raise DotsError("the JSON schema refers to itself without end") from error
    grammar = grammar.replace(LOOSE_CHARACTER, STRICT_CHARACTER)
    check_grammar(grammar)
    return grammar


def _objects(root: object) -> Iterator[dict[str, object]]:
    todo = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _check_node(node: dict[str, object]) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#/"):
        raise DotsError(
            f"the JSON schema refers to {reference!r}",
            hint="only references like #/$defs/NAME work",
        )
    for key in COUNTS:
        count = node.get(key)
        if isinstance(count, int) and not 0 <= count <= MAX_REPEAT:
            raise DotsError(f"the JSON schema has {key} {count}", hint=f"give 0 to {MAX_REPEAT}")
