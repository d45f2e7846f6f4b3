"""Maps of experts as a picture: .svg in our own words, .png through matplotlib.

matplotlib is asked for only when a .png is; it is no dependency of the package.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from dotscli.errors import DotsError, ExitStatus
from dotscli.quantize.output.part_file import check_place
from dotscli.quantize.output.whole_file import write_whole
from dotscli.views.expert_maps import ExpertMap, rgb

_NAN = float("nan")
# Of the SVG, in pixels; a character's width is that of most viewers' sans-serif, roughly.
_CELL, _LEFT, _RIGHT, _LINE, _CHAR = 8, 56, 48, 16, 6.5
_LAYER_STEP, _EXPERT_STEP = 4, 8  # cells between two numbers on an axis


def write_plot(path: Path, name: str, maps: Sequence[ExpertMap], force: bool) -> None:
    """Draw maps one below the other; the file is written whole or not at all.

    Args:
        name: of what they show, for the title.
        force: whether an existing file may be replaced.

    Raises:
        DotsError: nothing to draw, another suffix, no matplotlib, or the file can't be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise DotsError(
            f"--plot {path} is neither .png nor .svg", exit_status=ExitStatus.USAGE,
            hint="--plot NAME.svg",
        )  # fmt: skip
    if not maps:
        raise DotsError(
            "nothing to plot: neither heat nor errors are known", hint="give --heat or --report"
        )
    data = svg(name, maps).encode() if path.suffix == ".svg" else _png(name, maps)
    check_place(path, [path], (), "--plot")
    if path.exists() and not force:
        raise DotsError(f"{path} already exists", hint="--force replaces it")
    write_whole(path, [data])


def svg(name: str, maps: Sequence[ExpertMap]) -> str:
    """The maps as an SVG document: layers down, experts across, both with their numbers."""
    parts: list[str] = []
    titles = [f"{name}, {shown.title}" for shown in maps]
    top = _LINE
    for title, shown in zip(titles, maps, strict=True):
        parts.append(_text(_LEFT, top, title))
        top += 2 * _LINE
        parts += _axis(shown, top)
        top += _CELL
        for line, layer in enumerate(shown.values):
            parts += _row(shown, layer, top + line * _CELL, numbered=line % _LAYER_STEP == 0)
        top += len(shown.values) * _CELL + _LINE
        parts += _legend(shown, top)
        top += 3 * _LINE
    cells = _CELL * max(64, *(shown.n_experts for shown in maps))
    width = _LEFT + _RIGHT + max(cells, *(round(_CHAR * len(title)) for title in titles))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
        'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{top}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _axis(shown: ExpertMap, y: int) -> Iterator[str]:
    """What the numbers mean, at the corner, and the experts' numbers with a tick each."""
    yield _text(_LEFT - 8, y, "layer", "end")
    for expert in range(0, shown.n_experts, _EXPERT_STEP):
        middle = _LEFT + expert * _CELL + _CELL // 2
        yield f'<path d="M{middle} {y + 3}v4" stroke="black"/>'
        yield _text(middle, y, str(expert), "middle")
    yield _text(_LEFT + shown.n_experts * _CELL + 4, y, "expert")


def _row(shown: ExpertMap, layer: int, y: int, numbered: bool) -> Iterator[str]:
    if numbered:
        yield _text(_LEFT - 8, y + _CELL, str(layer), "end")
    for expert, cell in enumerate(shown.cells(layer, 1)):
        yield (
            f'<rect x="{_LEFT + expert * _CELL}" y="{y}" width="{_CELL}" height="{_CELL}" '
            f'fill="{_hex(cell)}"><title>layer {layer}, expert {expert}: '
            f"{shown.values[layer][expert]:.4g}</title></rect>"
        )


def _legend(shown: ExpertMap, y: int) -> Iterator[str]:
    """The scale with its words below, each where its place on the scale is."""
    width = 256
    for step in range(64):
        x = _LEFT + step * width // 64
        yield f'<rect x="{x}" y="{y - 8}" width="4" height="8" fill="{_hex(step / 63)}"/>'
    for place, text in shown.ticks:
        anchor = {0.0: "start", 1.0: "end"}.get(place, "middle")
        yield _text(_LEFT + round(place * width), y + 12, text, anchor)
    if shown.none:
        x = _LEFT + width + 24
        yield f'<rect x="{x}" y="{y - 8}" width="8" height="8" fill="{_hex(None)}"/>'
        yield _text(x + 14, y, shown.none)


def _text(x: int, y: int, text: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}"{where}>{escape(text)}</text>'


def _hex(cell: float | None) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb(cell))


def _png(name: str, maps: Sequence[ExpertMap]) -> bytes:
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise DotsError(
            "a .png needs matplotlib, which is not installed",
            hint="pip install 'dotscli[plot]', or --plot NAME.svg, which needs no package",
        ) from None
    colours = ListedColormap([_floats(step / 255) for step in range(256)])
    colours.set_bad(_floats(None))
    sizes = [len(shown.values) for shown in maps]
    width = max(shown.n_experts for shown in maps) * 0.08 + 3
    figure = Figure(figsize=(max(width, 7), sum(sizes) * 0.08 + 1.4 * len(maps)), dpi=150)
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axis, shown in zip(axes, maps, strict=True):
        layers = list(shown.values)
        rows = [[_NAN if c is None else c for c in shown.cells(layer, 1)] for layer in layers]
        image = axis.imshow(
            rows, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=1,
            extent=(-0.5, shown.n_experts - 0.5, layers[-1] + 0.5, layers[0] - 0.5),
        )  # fmt: skip
        none = f" (red: {shown.none})" if shown.none else ""
        axis.set_title(f"{name}, {shown.title}{none}", fontsize=8)
        axis.set_xlabel("expert", fontsize=8)
        axis.set_xticks(range(0, shown.n_experts, 2 * _EXPERT_STEP))
        axis.set_ylabel("layer", fontsize=8)
        bar = figure.colorbar(image, ax=axis, ticks=[place for place, _ in shown.ticks])
        bar.ax.set_yticklabels([text for _, text in shown.ticks], fontsize=8)
    figure.tight_layout()
    made = io.BytesIO()
    figure.savefig(made, format="png")
    return made.getvalue()


def _floats(cell: float | None) -> tuple[float, ...]:
    return tuple(level / 255 for level in rgb(cell))
