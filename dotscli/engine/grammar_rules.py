"""Grammars before llama.cpp parses one: what is refused, and JSON schemas turned into them.

The parser of llama.cpp and the converter of llama-cpp-python both work by recursion and by
writing repetitions out, so depth and numbers are bounded here first; what they reject after that
becomes an error with their own words. What this costs isn't bounded: it runs in the process of
`dotscli.engine.grammar_child`.
"""

from __future__ import annotations

import json
import re
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
# Literals, character classes and comments, whose insides are no syntax.
_SKIPPED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_REPEAT = re.compile(r"\{\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?\}")
_STACKED = re.compile(r"[*+?}]\s*(?:[*+?]|\{[\s\d,]*\})")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def screen(text: str) -> None:
    """Refuses GBNF that could exhaust the stack or the memory of llama.cpp's parser.

    Raises:
        DotsError: empty, too long, too many rules, parentheses too deep, repetitions of
            repetitions or beyond measure, tokens by number (llama.cpp aborts on some), a NUL
            character, or half of a surrogate pair.
    """
    if not text.strip():
        raise DotsError("the grammar is empty", hint='for instance: root ::= "yes" | "no"')
    if "\0" in text:
        raise DotsError("the grammar contains a NUL character")
    if re.search("[\ud800-\udfff]", text):
        raise DotsError("the grammar is not valid Unicode")
    if len(text) > MAX_GRAMMAR:
        raise DotsError(f"the grammar has {len(text)} characters, the limit is {MAX_GRAMMAR}")
    if text.count("::=") > MAX_RULES:
        raise DotsError(f"the grammar has {text.count('::=')} rules, the limit is {MAX_RULES}")
    plain = _SKIPPED.sub(lambda match: "#" if match[0][0] == "#" else '""', text)
    if token := re.search(r"!?<[^>\n]*>?", plain):
        raise DotsError(
            f"the grammar refers to the token {token[0]}, which is unreliable in llama.cpp",
            hint="write the text of the token as a literal",
        )
    if _depth(plain) > MAX_NESTING:
        raise DotsError(f"the grammar nests parentheses deeper than {MAX_NESTING}")
    for match in _REPEAT.finditer(plain):
        low = int(match[1])
        if match[2] and not low <= int(match[2]) <= MAX_REPEAT:
            raise DotsError(
                f"the grammar has the repetition {match[0]}",
                hint=f"repeat at most {MAX_REPEAT} times",
            )
    if stacked := _STACKED.search(plain):
        raise DotsError(
            f"the grammar has two repetitions in a row: {stacked[0]}",
            hint="put the inner one in parentheses, or leave one out",
        )


def _depth(plain: str) -> int:
    """Deepest nesting of parentheses."""
    depth = deepest = 0
    for character in plain:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def gbnf_of_schema(schema: str) -> str:
    """What `dotscli.engine.grammar.json_schema_grammar` gives and raises."""
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise DotsError(f"the JSON schema is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DotsError(
            "the JSON schema is not a JSON object", hint='for instance {"type": "object"}'
        )
    for node in _objects(parsed):
        _check_node(node)
    converter = submodule("llama_grammar")
    try:
        grammar = str(converter.json_schema_to_gbnf(schema))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise DotsError(f"the JSON schema cannot be turned into a grammar: {error}") from error
    except RecursionError as error:
        raise DotsError("the JSON schema is nested too deeply, or refers to itself") from error
    grammar = grammar.replace(LOOSE_CHARACTER, STRICT_CHARACTER)
    screen(grammar)
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
            hint="only references like #/$defs/NAME are supported",
        )
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        for number in re.findall(r"\d+", " ".join(re.findall(r"\{([^}]*)\}", pattern))):
            if int(number[:9]) > MAX_REPEAT:
                raise DotsError(
                    f"the JSON schema has the pattern {pattern!r}",
                    hint=f"repeat at most {MAX_REPEAT} times",
                )
    for key in COUNTS:
        count = node.get(key)
        if isinstance(count, int) and not 0 <= count <= MAX_REPEAT:
            raise DotsError(f"the JSON schema has {key} {count}", hint=f"give 0 to {MAX_REPEAT}")
