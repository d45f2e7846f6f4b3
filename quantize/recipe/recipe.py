"""Recipe.type_for: the only place that picks the type of a tensor.

A recipe is a preset plus overrides REGEX=TYPE. What must stay float (norms, router, its bias) is
decided before either, as llama-quantize does, and the shape of a tensor has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import Sizes, TensorSpec
from dotscli.quantize.recipe.presets import Place, Preset, preset_named
from dotscli.quantize.types import F32, fitting, type_named

_ROLE = re.compile(r"^(?:blk\.\d+\.)?(\w+)\.\w+$")


@dataclass(frozen=True)
class Override:
    """REGEX=TYPE: tensors whose GGUF name the regex is found in take the type."""

    text: str
    pattern: re.Pattern[str]
    type: TensorType

    @classmethod
    def parse(cls, text: str) -> Override:
        """Parse REGEX=TYPE; the last "=" divides.

        Raises:
            DotsError: no "=", a regex that does not compile, or an unknown type.
        """
        regex, equals, name = text.rpartition("=")
        if not equals or not regex:
            raise DotsError(
                f"--tensor-type {text} is not REGEX=TYPE", hint="e.g. ffn_down_exps=q5_0"
            )
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise DotsError(f"--tensor-type {text}: invalid regular expression: {error}") from None
        return cls(text, pattern, type_named(name))


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized: a preset and the overrides, in the order they were given."""

    base: Preset
    overrides: tuple[Override, ...] = ()

    @classmethod
    def preset(cls, name: str, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe of a preset's name and of overrides "REGEX=TYPE".

        Raises:
            DotsError: an unknown preset or type, or an override that can't be read.
        """
        return cls(preset_named(name), tuple(Override.parse(text) for text in overrides))

    @property
    def name(self) -> str:
        """The preset's name."""
        return self.base.name

    @property
    def file_type(self) -> int:
        """general.file_type, llama.cpp's number of the preset."""
        return self.base.file_type

    def type_for(self, spec: TensorSpec, model: Sizes, with_importance: bool = False) -> TensorType:
        """The type of one tensor.

        The first override that matches wins over the preset; where the rows are no multiple of the
        type's block, the type that llama-quantize falls back to is taken.
        """
        if not quantizable(spec):
            return F32
        n_columns = spec.n_columns
        for override in self.overrides:
            if override.pattern.search(spec.name):
                return fitting(override.type, n_columns)
        match = _ROLE.match(spec.name)
        assert match is not None
        place = Place(
            role=match[1],
            layer=-1 if spec.layer is None else spec.layer,
            n_layers=model.n_layers,
            n_experts=model.n_experts,
            n_columns=n_columns,
            with_importance=with_importance,
        )
        return fitting(self.base.rule(place), n_columns)

    def check_overrides(self, specs: Iterable[TensorSpec]) -> None:
        """Refuse an override that changes nothing, which is nearly always a misspelt name.

        Raises:
            DotsError: an override that matches no tensor, or only tensors that stay float.
        """
        specs = tuple(specs)
        for override in self.overrides:
            matching = [spec for spec in specs if override.pattern.search(spec.name)]
            if not matching:
                raise DotsError(
                    f"--tensor-type {override.text} matches no tensor",
                    hint="names are like blk.7.ffn_down_exps.weight; --dry-run --json lists them",
                )
            if not any(quantizable(spec) for spec in matching):
                raise DotsError(
                    f"--tensor-type {override.text} matches only tensors that stay F32, "
                    f"such as {matching[0].name}"
                )


def quantizable(spec: TensorSpec) -> bool:
    """Whether a tensor may be anything but F32: matrices, except the router's."""
    return len(spec.shape) > 1 and ".ffn_gate_inp." not in spec.name
