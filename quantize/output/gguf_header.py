"""The header of a GGUF: magic, keys and values, and where every tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. The
package gguf writes headers too, but wants the tensors in hand; here everything is known from the
plan, and the same plan gives the same bytes. Its constants are used. It does not write to a file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gguf import GGUF_MAGIC, GGUF_VERSION, GGUFValueType

from dotscli.errors import DotsError
from dotscli.models.gguf_file import DEFAULT_ALIGNMENT
from dotscli.models.gguf_type import SCALARS, VALUE_NAMES
from dotscli.models.json_file import shown
from dotscli.models.metadata import KeyValue
from dotscli.quantize.plan import ALIGNMENT, TensorPlan, aligned

# kind of a KeyValue -> its type in the file, and how its bytes lie there
_SCALARS = {
    VALUE_NAMES[number]: (GGUFValueType(number), layout) for number, layout in SCALARS.items()
}
_ALIGNMENT = KeyValue("general.alignment", "u32", ALIGNMENT)


def gguf_header(keys: Sequence[KeyValue], tensors: Sequence[TensorPlan]) -> bytes:
    """The bytes before the data section of a model, padded to where that starts.

    Args:
        keys: without the alignment, which is added: tensors lie as a plan has them.

    Raises:
        DotsError: a value that its type can't hold.
    """
    return header((*keys, _ALIGNMENT), [_info(tensor) for tensor in tensors], ALIGNMENT)


def header(
    keys: Sequence[KeyValue], infos: Sequence[bytes], alignment: int = DEFAULT_ALIGNMENT
) -> bytes:
    """The same of any GGUF, from lines that `tensor_info` has made.

    Args:
        alignment: what `keys` say, or the default if they say nothing.
    """
    raw = _unpadded(keys, infos)
    return raw + bytes(aligned(len(raw), alignment) - len(raw))


def unpadded_nbytes(keys: Sequence[KeyValue]) -> int:
    """The length of `gguf_header` as it is before the first tensor's line and without padding."""
    return len(_unpadded((*keys, _ALIGNMENT), ()))


def _unpadded(keys: Sequence[KeyValue], infos: Sequence[bytes]) -> bytes:
    parts = [struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(infos), len(keys))]
    for key in keys:
        parts.append(_string(key.key))
        parts.append(_value(key))
    return b"".join([*parts, *infos])


def tensor_infos(tensors: Sequence[TensorPlan]) -> bytes:
    """The part of the header that says where every tensor lies."""
    return b"".join(_info(tensor) for tensor in tensors)


def _info(tensor: TensorPlan) -> bytes:
    return tensor_info(tensor.name, tensor.shape[::-1], tensor.type.id, tensor.offset)


def tensor_info(name: str, sizes: Sequence[int], type_id: int, offset: int) -> bytes:
    """One tensor's line in the header; sizes in GGUF order, columns first."""
    return (
        _string(name)
        + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        + struct.pack("<IQ", type_id, offset)
    )


def _value(key: KeyValue) -> bytes:
    try:
        if key.kind == "str":
            return struct.pack("<I", GGUFValueType.STRING) + _string(str(key.value))
        if key.kind.startswith("arr["):
            return struct.pack("<I", GGUFValueType.ARRAY) + _array(key)
        number, layout = _SCALARS[key.kind]
        return struct.pack("<I", number) + layout.pack(key.value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise DotsError(f"{key.key}: {shown(key.value)} does not fit {key.kind}: {error}") from None


def _array(key: KeyValue) -> bytes:
    values = key.value
    assert isinstance(values, tuple)
    kind = key.kind[4:-1]
    if kind == "str":
        strings = b"".join(_string(str(value)) for value in values)
        return struct.pack("<IQ", GGUFValueType.STRING, len(values)) + strings
    number, layout = _SCALARS[kind]
    return struct.pack("<IQ", number, len(values)) + struct.pack(
        f"<{len(values)}{layout.format[1:]}", *values
    )


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded
