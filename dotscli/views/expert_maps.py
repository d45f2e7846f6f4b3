"""Maps of experts: layers down, experts across, a colour or a character for each.

Numbers go in, cells come out; nothing is printed here. In colour two layers share a line, as the
upper and the lower half of its blocks. Where there are more experts than columns, neighbours share
a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

RGB = tuple[int, int, int]
Cell = float | None  # a position on the scale from 0 to 1; None is the value of its own kind
Part = tuple[str, str]  # a text and its colour (SGR)

SHADES = " .:-=+*#%@"
NONE_SHADE = "x"
NONE_RGB: RGB = (200, 30, 40)
# From dark to light so that a person who can't tell the colours still sees the order.
_PALETTE: tuple[RGB, ...] = (
    (26, 16, 64), (59, 64, 140), (38, 112, 142), (32, 158, 132), (116, 200, 88), (250, 230, 50),
)  # fmt: skip
_LABEL = 6  # columns before the cells: two layers
_NOTE = 5  # columns of a layer's figure behind them
_CUBE = (0, 95, 135, 175, 215, 255)  # the levels of the 216 colours that every terminal has


@dataclass(frozen=True)
class ExpertMap:
    """One map.

    Attributes:
        title: what it shows.
        values: layer -> a value for each expert; all layers have equally many.
        position: from a value to a place on the scale.
        combine: makes one value of those that share a cell.
        combined: what it is called.
        ticks: words for places on the scale, in order.
        none: what the value of its own kind means, "" if there is none.
        notes: layer -> its figure, at most 5 characters; note: what they are.
    """

    title: str
    values: Mapping[int, Sequence[float]]
    position: Callable[[float], Cell]
    combine: Callable[[Sequence[float]], float]
    combined: str
    ticks: Sequence[tuple[float, str]]
    none: str
    notes: Mapping[int, str]
    note: str

    @property
    def n_experts(self) -> int:
        """Experts of a layer."""
        return max(map(len, self.values.values()))

    def cells(self, layer: int, per_cell: int) -> list[Cell]:
        """A layer's cells from left to right."""
        values = self.values[layer]
        groups = (values[at : at + per_cell] for at in range(0, len(values), per_cell))
        return [self.position(self.combine(group)) for group in groups]


def heat_map(values: Mapping[int, Sequence[float]], notes: Mapping[int, str]) -> ExpertMap:
    """Use against an even share: steps of the scale are factors, from 1/8 to 8."""

    def position(value: float) -> Cell:
        return min(1.0, max(0.0, (math.log2(value) + 3) / 6)) if value > 0 else None

    ticks = [(0.0, "1/8"), (0.5, "1"), (1.0, "8 times")]
    return ExpertMap(
        "heat: tokens routed to an expert, relative to an even share", values, position, _mean,
        "their mean", ticks, "no tokens", notes, "bits",
    )  # fmt: skip


def error_map(values: Mapping[int, Sequence[float]], notes: Mapping[int, str]) -> ExpertMap:
    """Relative errors, on a scale from the least to the largest."""
    low = min(min(row) for row in values.values())
    high = max(max(row) for row in values.values())

    def position(value: float) -> Cell:
        return (value - low) / (high - low) if high > low else 0.0

    ticks = [(0.0, f"{low:.2%}"), (1.0, f"{high:.2%}")]
    return ExpertMap(
        "relative error of an expert: root mean square over gate, up and down", values,
        position, max, "the largest", ticks, "", notes, "%",
    )  # fmt: skip


def colour_lines(shown: ExpertMap, width: int, true_colour: bool) -> Iterator[list[Part]]:
    """The lines of a map in colour, legend included.

    Args:
        width: columns of the terminal.
        true_colour: whether it takes 24-bit colours; else the 216 of every terminal.
    """
    per_cell = _per_cell(shown, width)
    yield [(_axis(shown, per_cell, f"{shown.note:>{2 * _NOTE}}"), "")]
    layers = list(shown.values)
    for upper, *rest in (layers[at : at + 2] for at in range(0, len(layers), 2)):
        rows = [shown.cells(layer, per_cell) for layer in (upper, *rest)]
        label = " ".join(f"{layer:>2}" for layer in (upper, *rest))
        styles = (
            ";".join(
                _sgr(ground, cell, true_colour)
                for ground, cell in zip((38, 48), pair, strict=False)
            )
            for pair in zip(*rows, strict=True)
        )
        cells = [("▀" * len(list(run)), style) for style, run in groupby(styles)]
        notes = "".join(f"{shown.notes.get(layer, ''):>{_NOTE}}" for layer in (upper, *rest))
        yield [(f"{label:{_LABEL}}", ""), *cells, (notes, "")]
    scale = [("█", _sgr(38, step / 11, true_colour)) for step in range(12)]
    first, *others = (text for _, text in shown.ticks)
    legend = [(f"{first} ", ""), *scale, (f" {others[-1]}", "")]
    if shown.none:
        legend += [("   ", ""), ("█", _sgr(38, None, true_colour)), (f" {shown.none}", "")]
    yield [(" " * _LABEL, ""), *legend]
    yield from ([(line, "")] for line in _shared(shown, per_cell))


def shade_lines(shown: ExpertMap, width: int) -> Iterator[str]:
    """The lines of a map in characters, a layer each, legend included."""
    per_cell = _per_cell(shown, width)
    yield _axis(shown, per_cell, f"{shown.note:>{_NOTE}}")
    for layer in shown.values:
        cells = "".join(map(_shade, shown.cells(layer, per_cell)))
        yield f"{layer:>2}{'':{_LABEL - 2}}{cells}{shown.notes.get(layer, ''):>{_NOTE}}"
    ticks = ", ".join(f'"{_shade(place)}" {text}' for place, text in shown.ticks)
    none = f', "{NONE_SHADE}" {shown.none}' if shown.none else ""
    yield f"{'':{_LABEL}}{ticks}{none}"
    yield from _shared(shown, per_cell)


def rgb(cell: Cell) -> RGB:
    """The colour of a cell."""
    if cell is None:
        return NONE_RGB
    place = min(max(cell, 0.0), 1.0) * (len(_PALETTE) - 1)
    at = min(int(place), len(_PALETTE) - 2)
    low, high = _PALETTE[at], _PALETTE[at + 1]
    red, green, blue = (round(a + (b - a) * (place - at)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _per_cell(shown: ExpertMap, width: int) -> int:
    """How many experts share a cell, so that a line is no wider than the terminal."""
    return -(-shown.n_experts // max(1, width - _LABEL - 2 * _NOTE))


def _axis(shown: ExpertMap, per_cell: int, note: str) -> str:
    """Numbers of experts above their cells, as many as have room, and what stands behind."""
    n_cells = -(-shown.n_experts // per_cell)
    step = next(s for s in (4 << n for n in range(16)) if s // per_cell >= _LABEL)
    line = ""
    for expert in range(0, shown.n_experts, step):
        at = expert // per_cell
        if at + len(str(expert)) <= n_cells:
            line = f"{line:{at}}{expert}"
    return f"{'':{_LABEL}}{line:{n_cells}}{note}"


def _shared(shown: ExpertMap, per_cell: int) -> list[str]:
    line = f"{'':{_LABEL}}{per_cell} experts share a cell, which shows {shown.combined}"
    return [line] if per_cell > 1 else []


def _shade(cell: Cell) -> str:
    if cell is None:
        return NONE_SHADE
    return SHADES[min(int(cell * len(SHADES)), len(SHADES) - 1)]


def _sgr(ground: int, cell: Cell, true_colour: bool) -> str:
    """A colour as terminals are told it; ground is 38 for the character, 48 for what is behind."""
    red, green, blue = rgb(cell)
    if true_colour:
        return f"{ground};2;{red};{green};{blue}"
    nearest = (min(range(6), key=lambda n: abs(_CUBE[n] - v)) for v in (red, green, blue))
    r, g, b = nearest
    return f"{ground};5;{16 + 36 * r + 6 * g + b}"
