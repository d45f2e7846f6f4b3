"""A JSON schema in one line: `name, age int, tags: what it is about` for an object of three.

Fields are separated by commas, or by lines if there are several; each is a name, perhaps a type
(str, int, float, bool), perhaps a colon and a description. All of them are required.
"""

from __future__ import annotations

import json
import re

from dotscli.errors import DotsError

TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
MAX_FIELDS = 200
_FIELD = re.compile(r"(\w[\w-]*)(?:\s+(\w+))?\s*(?::\s*(.*))?", re.DOTALL)


def full_schema(text: str) -> str:
    """The schema itself; JSON stays as it is.

    Raises:
        DotsError: a field that is none, a type that isn't known, a name twice.
    """
    text = text.strip()
    if not text or text[0] in '{["' or text in ("true", "false"):
        return text
    fields = [part.strip() for part in text.split("\n" if "\n" in text else ",")]
    properties: dict[str, dict[str, str]] = {}
    for field in filter(None, fields):
        match = _FIELD.fullmatch(field)
        name, kind, what = match.groups() if match else (None, None, None)
        if name is None or name in properties or (kind is not None and kind not in TYPES):
            raise DotsError(
                f"{field[:40]!r} is no field of a schema",
                hint=f'for instance: "name, age int"; types are {", ".join(TYPES)}',
                exit_status=2,
            )
        properties[name] = {"type": TYPES[kind or "str"]} | ({"description": what} if what else {})
    if not 0 < len(properties) <= MAX_FIELDS:
        raise DotsError(f"a schema has 1 to {MAX_FIELDS} fields", exit_status=2)
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties),
         "additionalProperties": False}
    )  # fmt: skip
