"""Groups of options: a command takes a dataclass, its command line the dataclass's fields.

It knows neither which options there are nor the library that parses them: that library reads a
function's signature, and `grouped` writes one.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a group of options by its options, and call with the group."""
    # Not typing.get_type_hints: before Python 3.11 it makes a default of None an Optional around
    # the annotation, where typer doesn't see it.
    hints = inspect.get_annotations(command, eval_str=True)
    groups: dict[str, Any] = {n: h for n, h in hints.items() if dataclasses.is_dataclass(h)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        kind = groups[name]
        options = _annotations(kind)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=options[field.name],
            )
            for field in dataclasses.fields(kind)
        ]

    @wraps(command)
    def with_groups(**values: Any) -> None:
        for name, kind in groups.items():
            fields = [field.name for field in dataclasses.fields(kind)]
            values[name] = kind(**{field: values.pop(field) for field in fields})
        command(**values)

    ordered = sorted(parameters, key=lambda p: p.kind == inspect.Parameter.KEYWORD_ONLY)
    with_groups.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # typer reads it
    with_groups.__annotations__ = {p.name: p.annotation for p in ordered}
    return with_groups


def _annotations(kind: type) -> dict[str, Any]:
    """Those of a group and of the groups it extends."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        found |= inspect.get_annotations(base, eval_str=True)
    for field in dataclasses.fields(kind):
        found[field.name] = _changed(found[field.name], field.metadata)
    return found


def _changed(annotation: Any, changes: Mapping[str, Any]) -> Any:
    """An option as one group wants it: a copy, where anything is to be changed."""
    if not changes:
        return annotation
    option = copy.copy(annotation.__metadata__[0])
    for name, value in changes.items():
        if not hasattr(option, name):
            raise AttributeError(f"an option has no {name}")
        setattr(option, name, value)
    return Annotated[annotation.__origin__, option]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
