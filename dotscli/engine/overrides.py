"""Where tensors go: the override patterns of a load, as the array that llama.cpp reads.

The field is `const struct { const char *pattern; ggml_backend_buffer_type_t buft; } *`, ended by
a null pattern; the first pattern found anywhere in a tensor's name wins (llama.h,
llama-model-loader.cpp). The expert patterns are those behind llama.cpp's own --cpu-moe.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dotscli.engine.devices import buffer_types
from dotscli.engine.options import EngineOptions
from dotscli.errors import DotsError

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def override_array(
    options: EngineOptions,
    names: Iterable[str],
    first: Sequence[tuple[str, int]] = (),
    last: Sequence[tuple[str, int]] = (),
) -> Any:
    """The overrides of these options as a C array, None if there are none.

    The caller keeps it alive as long as the model. Explicit overrides come before the experts'.

    Args:
        options: as the user gave them.
        names: the tensors of the model; a pattern that matches none of them is a mistake.
        first: pattern and address of a buffer type, whatever the options say.
        last: the same for what no override of the options is about.

    Raises:
        DotsError: a pattern that is no regular expression or matches nothing, a buffer type that
            no device has.
    """
    pairs = [*first, *_overrides(options, list(names)), *last]
    if not pairs:
        return None
    array = (_Override * (len(pairs) + 1))()
    for slot, (pattern, address) in zip(array, pairs, strict=False):
        slot.pattern, slot.buffer_type = pattern.encode(), address
    return array


def _overrides(options: EngineOptions, names: list[str]) -> list[tuple[str, int]]:
    if not (options.override_tensor or options.cpu_moe or options.n_cpu_moe):
        return []
    known = buffer_types()
    pairs = []
    for text in options.override_tensor:
        pattern, equals, kind = text.rpartition("=")
        if not equals or not pattern:
            raise DotsError(
                f"invalid --override-tensor {text!r}", hint="give REGEX=BUFFER-TYPE", exit_status=2
            )
        if kind not in known:
            raise DotsError(
                f"--override-tensor: unknown buffer type {kind!r}",
                hint=f"this machine has {', '.join(known)}",
                exit_status=2,
            )
        _check_pattern(pattern, names)
        pairs.append((pattern, known[kind]))
    if options.cpu_moe:
        pairs.append((EXPERTS, known["CPU"]))
    else:
        pairs += [(rf"blk\.{i}{EXPERTS}", known["CPU"]) for i in range(options.n_cpu_moe)]
    return pairs


def _check_pattern(pattern: str, names: list[str]) -> None:
    try:
        found = any(re.search(pattern, name) for name in names)
    except re.error as error:
        raise DotsError(
            f"--override-tensor: {pattern!r} is not a valid regular expression: {error}",
            exit_status=2,
        ) from error
    if not found:
        raise DotsError(
            f"--override-tensor {pattern!r} matches no tensor",
            hint="list the names with: dots inspect MODEL --json",
            exit_status=2,
        )
