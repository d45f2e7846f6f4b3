"""The metadata of a GGUF that is made from another one: everything that stays true.

What follows from the types or the division into files is left out or set anew, as llama-quantize
does; so are checksums, which are those of other bytes.
"""

from __future__ import annotations

from dotscli.models.gguf_bytes import GgufArray
from dotscli.models.gguf_file import GgufFile
from dotscli.models.gguf_type import STRING, VALUE_NAMES
from dotscli.models.metadata import KeyValue

# general.alignment: that of the file made is its writer's.
_NOT_KEPT = ("split.", "general.alignment", "quantize.imatrix.", "dots.checksum.")


def kept_keys(gguf: GgufFile, file_type: int) -> tuple[KeyValue, ...]:
    """The keys of a file with the same model in other types, in the order of this one.

    Args:
        file_type: llama.cpp's number of the preset (general.file_type).
    """
    keys = {
        key: _key_value(key, gguf.types[key], value)
        for key, value in gguf.metadata.items()
        if not key.startswith(_NOT_KEPT)
    }
    for key, value in (("quantization_version", 2), ("file_type", file_type)):
        keys[f"general.{key}"] = KeyValue(f"general.{key}", "u32", value)
    return tuple(keys.values())


def _key_value(key: str, kind: int, value: object) -> KeyValue:
    if isinstance(value, GgufArray):
        element, strings = _name(value.element_type), value.element_type == STRING
        values = tuple(value.strings()) if strings else tuple(value.numbers())
        return KeyValue(key, f"arr[{element}]", values)
    assert isinstance(value, int | float | str)  # what GgufFile holds
    return KeyValue(key, _name(kind), value)


def _name(kind: int) -> str:
    return "str" if kind == STRING else VALUE_NAMES[kind]
