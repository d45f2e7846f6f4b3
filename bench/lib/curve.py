"""A picture of error against size, as SVG: one panel per model, the same bytes for the same points.

Points are given; nothing here measures. The y axis is logarithmic. Written by hand because a
plotting library would bring its version and fonts into the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, MARGIN = 760, 420, 64
LETTER = 5.6  # width of a character, about
INK, GREY, PLAIN, IMPORTANCE = "#222", "#ddd", "#8a8f98", "#0b6e4f"


@dataclass(frozen=True)
class Point:
    """One file: its label, bits per weight, mean KL divergence, made with an importance matrix."""

    label: str
    bpw: float
    kl: float
    with_importance: bool


def picture(panels: Sequence[tuple[str, Sequence[Point]]], x_title: str, y_title: str) -> str:
    """The SVG of panels (title, points), one below the other."""
    height = PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, (title, points) in enumerate(panels):
        parts.append(f'<g transform="translate(0 {number * PANEL})">')
        parts += panel(title, points, x_title, y_title)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(title: str, points: Sequence[Point], x_title: str, y_title: str) -> list[str]:
    """Axes, points and labels of one panel."""
    low_x, high_x = min(p.bpw for p in points) - 0.1, max(p.bpw for p in points) + 0.35
    low_y = math.log10(min(p.kl for p in points)) - 0.1
    high_y = math.log10(max(p.kl for p in points)) + 0.1

    def x(bpw: float) -> float:
        return MARGIN + (bpw - low_x) / (high_x - low_x) * (WIDTH - MARGIN - 20)

    def y(kl: float) -> float:
        share = (math.log10(kl) - low_y) / (high_y - low_y)
        return PANEL - 48 - share * (PANEL - 88)

    out = [f'<text x="{MARGIN}" y="22" font-size="14">{escape(title)}</text>']
    step = 0.25 if high_x - low_x < 3 else 0.5
    for i in range(math.ceil(low_x / step), math.floor(high_x / step) + 1):
        at = f"{x(i * step):.1f}"
        out.append(f'<path d="M{at} 40V{PANEL - 48}" stroke="{GREY}"/>')
        out.append(f'<text x="{at}" y="{PANEL - 32}" text-anchor="middle">{i * step:g}</text>')
    for power in range(math.floor(low_y), math.ceil(high_y) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low_y <= math.log10(value) <= high_y:
                at = f"{y(value):.1f}"
                out.append(f'<path d="M{MARGIN} {at}H{WIDTH - 20}" stroke="{GREY}"/>')
                out.append(f'<text x="{MARGIN - 6}" y="{at}" text-anchor="end">{value:g}</text>')
    for recipe in points:  # a recipe's two points belong together
        for other in points:
            if other.label == recipe.label and other.with_importance > recipe.with_importance:
                out.append(
                    f'<path d="M{x(recipe.bpw):.1f} {y(recipe.kl):.1f}L{x(other.bpw):.1f} '
                    f'{y(other.kl):.1f}" stroke="{PLAIN}" stroke-dasharray="2 2"/>'
                )
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: (p.with_importance, p.bpw, p.kl)):
        px, py = x(point.bpw), y(point.kl)
        fill = IMPORTANCE if point.with_importance else PLAIN
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{fill}"/>')
        if not point.with_importance:  # every recipe has this point
            left, right = px + 7, px + 7 + LETTER * len(point.label)
            text_y = free(left, right, py + 4, taken)
            taken.append((left, right, text_y))
            out.append(f'<text x="{left:.1f}" y="{text_y:.1f}">{escape(point.label)}</text>')
    middle = PANEL / 2
    out.append(f'<text x="{WIDTH / 2}" y="{PANEL - 12}" text-anchor="middle">{x_title}</text>')
    out.append(f'<text transform="translate(14 {middle}) rotate(-90)" '
               f'text-anchor="middle">{y_title}</text>')  # fmt: skip
    for i, (fill, text) in enumerate(((PLAIN, "without"), (IMPORTANCE, "with importance matrix"))):
        out.append(f'<circle cx="{WIDTH - 260 + 70 * i}" cy="18" r="4" fill="{fill}"/>')
        out.append(f'<text x="{WIDTH - 252 + 70 * i}" y="22">{text}</text>')
    return out


def free(left: float, right: float, y: float, taken: Sequence[tuple[float, float, float]]) -> float:
    """The nearest height above or below at which a label touches none that is written already."""
    for shift in (0, -11, 11, -22, 22, -33, 33, -44, 44):
        if all(left > r or right < at or abs(y + shift - h) >= 10.5 for at, r, h in taken):
            return y + shift
    return y
