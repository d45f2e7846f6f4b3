"""A placement as a person reads it: sizes, a bar per memory, contexts against types of cache.

It only puts figures into words. Everything goes to stdout: the plan is what was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dotscli.hot.contexts import Column
from dotscli.hot.memory_use import Use, Verdict
from dotscli.hot.placement import Placement
from dotscli.hot.slots import knee_slots
from dotscli.hot.throughput import flat_traffic, speed
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes

BAR_LABEL, MAX_BAR = 14, 72
SPEED_LABEL = 23
WIDE = 104  # columns that the table of memories takes; on fewer it lies on its side
# What a bar is made of: the name, its character in ASCII and elsewhere, its colour (SGR).
PARTS = (
    ("dense", "#", "█", "34"),
    ("cache", "=", "▓", "36"),
    ("compute", "-", "▒", "35"),
    ("experts", "*", "◆", "33"),
    ("margin", ".", "░", "2"),
    ("free", " ", " ", "32"),
)
COLUMNS = ("memory", "total", *(name for name, *_ in PARTS), "missing")


def show(
    terminal: Terminal,
    name: str,
    device: str,
    found: Placement,
    columns: Sequence[Column],
    bandwidth: int,
    disk_bandwidth: int,
) -> None:
    """Print a placement; bandwidths in bytes per second (0: not known) add what
    they allow."""
    cost, request = found.cost, found.request
    n_moe = len(cost.moe_layers)
    terminal.paragraph(
        f"{name}: {format_bytes(cost.weights_nbytes)}, {len(cost.layers)} layers, {n_moe} of them "
        f"with {cost.n_experts // max(n_moe, 1)} experts"
    )
    terminal.paragraph(f"context {request.n_ctx}, cache {request.type_k} and {request.type_v}")
    terminal.write("\n")
    memories = [("main memory", found.ram)]
    if device:
        memories.insert(0, (device, found.device))
    if found.disk_nbytes:
        memories.append(("disk", Use(total=found.disk_nbytes, experts=found.disk_nbytes)))
    rows = [(label, *map(_size, (use.total, *_parts(use), use.missing))) for label, use in memories]
    if terminal.stdout_is_tty and terminal.width < WIDE:
        labels = tuple(label for label, _ in memories)
        across = list(zip(COLUMNS[1:], *(row[1:] for row in rows), strict=True))
        terminal.table((COLUMNS[0], *labels), across, right=labels)
    else:
        terminal.table(COLUMNS, rows, right=COLUMNS[1:])
    terminal.write("\n")
    ascii_only = not terminal.stdout_is_tty or terminal.is_dumb
    for label, use in memories:
        _bar(terminal, label, use, ascii_only)
    legend = (f"{part[1 if ascii_only else 2]} {part[0]}" for part in PARTS[:-1])
    if terminal.stdout_is_tty and terminal.width < WIDE:
        terminal.paragraph(", ".join(legend).replace(" ", "\u00a0").replace(",\u00a0", ", "))
        terminal.write("\n")
    else:
        terminal.write(f"{'':{BAR_LABEL}} {'  '.join(legend)}\n\n")
    if device:
        _experts(terminal, found)
    if bandwidth:
        _speed(terminal, found, bandwidth, disk_bandwidth)
    terminal.write("\n")
    rows, titles = context_rows(columns, bool(device))
    terminal.table(titles, rows, right=titles[1:])
    terminal.write("\n")


def _parts(use: Use) -> tuple[int, ...]:
    return (use.dense, use.kv, use.compute, use.experts, use.margin, use.free)


def _size(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes else "-"


def _bar(terminal: Terminal, label: str, use: Use, ascii_only: bool) -> None:
    """One line; where more is needed than there is, what is beyond the bracket doesn't fit."""
    width = max(10, min(MAX_BAR, terminal.width - BAR_LABEL - 3))
    whole = max(use.total, use.needed, 1)
    cells, done, before = "", 0, 0
    line: list[tuple[str, str]] = [(f"{label[: BAR_LABEL - 1]:{BAR_LABEL}} [", "")]
    border = round(use.total / whole * width)
    for (_, plain, glyph, colour), nbytes in zip(PARTS, _parts(use), strict=True):
        done += nbytes
        end = round(min(done, whole) / whole * width)
        for cell in range(before, end):
            if cell == border:
                line.append(("|", "31"))
            cells = plain if ascii_only else glyph
            line.append((cells, "31" if cell >= border else colour))
        before = end
    terminal.styled([*line, ("]\n", "")])


def _experts(terminal: Terminal, found: Placement) -> None:
    cost = found.cost
    slots = found.slots()
    few, many = min(slots.values(), default=0), max(slots.values(), default=0)
    span = f"{few}" if few == many else f"{few} to {many}"
    known = "by heat" if found.by_heat else "no heat known: all experts count equally"
    terminal.paragraph(
        f"{found.n_resident} of {cost.n_experts}, {span} slots per layer, "
        f"expected hit rate {found.hit_rate:.0%} ({known})",
        "experts on the device  ",
    )
    sizes = Counter((c.expert_nbytes, c.expert_types) for c in cost.moe_layers)
    for (nbytes, types), n in sizes.most_common():
        terminal.paragraph(
            f"{format_bytes(nbytes)} in {n} layers ({', '.join(types)})", "slot size              "
        )
    terminal.paragraph(
        f"{found.engine_options().flags} for hot experts; without them "
        f"{found.engine_options(hot=False).flags}",
        "options                ",
    )


def _speed(terminal: Terminal, found: Placement, ram_bandwidth: int, disk_bandwidth: int) -> None:
    """Both ends of what the bandwidths allow, and what they were calculated from."""
    if found.verdict is Verdict.TOO_SMALL:
        return
    low = flat_traffic(found)
    if low.disk and not disk_bandwidth:
        terminal.paragraph(
            f"{format_bytes(round(low.ram))} of main memory and up to "
            f"{format_bytes(round(low.disk))} of the disk per token; give --disk-bandwidth too, "
            "or measure it with dots doctor --measure",
            f"{'speed':{SPEED_LABEL}}",
        )
        return
    allowed = speed(found, ram_bandwidth, disk_bandwidth)
    if allowed is None:
        return
    first, last = f"{allowed.low:.3g}", f"{allowed.high:.3g}"
    span = f"at most {last}" if first == last else f"{first} to {last}"
    terminal.paragraph(
        f"{span} tokens per second (calculated, not measured; without the device's time)",
        f"{'speed':{SPEED_LABEL}}",
    )
    again = "by heat" if found.by_heat else "experts come again, and the most used ones stay"
    ends = (
        (first, allowed.low_traffic, ", then ", "all experts are equally likely"),
        (last, allowed.high_traffic, ", meanwhile ", again),
    )
    for figure, one, joint, case in ends[first == last :]:
        disk = ""
        if one.disk:
            disk = f"{joint}{format_bytes(round(one.disk))} of the disk at "
            disk += f"{format_bytes(disk_bandwidth)}/s"
        terminal.paragraph(
            f"{format_bytes(round(one.ram))} of main memory per token at "
            f"{format_bytes(ram_bandwidth)}/s{disk}: {case}",
            f"{'  ' + figure:{SPEED_LABEL}}",
        )


def context_rows(
    columns: Sequence[Column], with_device: bool
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Rows and titles of the table of contexts: what fits at each type of cache."""
    titles = ("context", *(column.kv_type for column in columns))
    rows = [
        (str(found[0].request.n_ctx), *(_cell(p, with_device) for p in found))
        for found in zip(*(column.placements for column in columns), strict=True)
    ]
    cost = columns[0].placements[0].cost
    rows.append(("longest", *(_tokens(column.longest) for column in columns)))
    if with_device:
        knee = f"longest, {knee_slots(cost)} slots"
        rows.append((knee, *(_tokens(column.longest_hot) for column in columns)))
    return rows, titles


def _cell(found: Placement, with_device: bool) -> str:
    if found.verdict is Verdict.TOO_SMALL:
        return f"{format_bytes(found.missing_nbytes)} short"
    if not with_device:
        on_disk = found.disk_nbytes
        return f"{format_bytes(on_disk)} on disk" if on_disk else "fits"
    if not found.dense_on_device:
        n_layers = sum(layer.on_device for layer in found.layers)
        return f"{n_layers} of {len(found.layers)} layers"
    share = found.n_resident / max(found.cost.n_experts, 1)
    return f"{found.n_resident} experts, {share:.0%}"


def _tokens(n_ctx: int) -> str:
    return str(n_ctx) if n_ctx else "none"
