"""spend(): one option per group, so that all errors together are least and the bytes are in budget.

A multiple-choice knapsack. Each group's options are reduced to their lower convex hull, the steps
along all hulls are taken by error removed per byte, as long as they fit, and what is left goes to
the single changes that still remove most. The result is optimal but for less than the largest step
of one group, and it can be explained: no step that was left out removes more per byte than one that
was taken, unless it didn't fit. It knows bytes and errors, not tensors or types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """What one choice for a group costs, and the error that it leaves, in any one unit."""

    nbytes: int
    error: float


def least_nbytes(groups: Sequence[Sequence[Option]]) -> int:
    """What the smallest options need together."""
    return sum(min(option.nbytes for option in options) for options in groups)


def most_nbytes(groups: Sequence[Sequence[Option]]) -> int:
    """What the options with the least error need together; more bytes would remove nothing."""
    return sum(options[_hull(options)[-1]].nbytes for options in groups)


def spend(groups: Sequence[Sequence[Option]], nbytes: int) -> list[int]:
    """Choose.

    Args:
        groups: the options of each group, at least one.
        nbytes: the most that the chosen options may need together.

    Returns:
        For each group the index of the option chosen.

    Raises:
        ValueError: even the smallest options need more.
    """
    left = nbytes - least_nbytes(groups)
    if left < 0:
        raise ValueError(f"{nbytes} bytes, the smallest options need {-left} more")
    hulls = [_hull(options) for options in groups]
    chosen = [hull[0] for hull in hulls]
    steps = sorted(
        (-_gain_per_byte(options[start], options[end]), group, start, end)
        for group, (options, hull) in enumerate(zip(groups, hulls, strict=True))
        for start, end in pairwise(hull)
    )
    for _, group, start, end in steps:
        cost = groups[group][end].nbytes - groups[group][start].nbytes
        if chosen[group] == start and cost <= left:  # not after a step that didn't fit
            chosen[group], left = end, left - cost
    _fill(groups, chosen, left)
    return chosen


def _fill(groups: Sequence[Sequence[Option]], chosen: list[int], left: int) -> None:
    """Spend what is left on the change of one group that removes most, again and again."""
    while True:
        best, change = 0.0, None
        for group, options in enumerate(groups):
            now = options[chosen[group]]
            for index, option in enumerate(options):
                if option.nbytes - now.nbytes <= left and now.error - option.error > best:
                    best, change = now.error - option.error, (group, index)
        if change is None:
            return
        group, index = change
        left -= groups[group][index].nbytes - groups[group][chosen[group]].nbytes
        chosen[group] = index


def _gain_per_byte(start: Option, end: Option) -> float:
    return (start.error - end.error) / (end.nbytes - start.nbytes)


def _hull(options: Sequence[Option]) -> list[int]:
    """Indices along the lower convex hull, from the fewest bytes to the least error."""
    order = sorted(range(len(options)), key=lambda i: (options[i].nbytes, options[i].error))
    hull: list[int] = []
    for index in order:
        option = options[index]
        if hull and option.error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _gain_per_byte(
            options[hull[-2]], options[hull[-1]]
        ) <= _gain_per_byte(options[hull[-1]], option):
            hull.pop()
        hull.append(index)
    return hull
