"""From pieces to what is shown: the text as it comes, one JSON object, a line of figures.

It knows no engine: pieces come from an iterator, whoever makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dotscli.engine.stream import HotFigures, Piece, RamFigures, Stats
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal

OTHER_BITS = (
    "--draft: this device computes several tokens at once with other bits than one by one, so an "
    "answer can differ from that without"
)
LONG_LOAD_S = 1.0  # shorter ones go without saying


@dataclass
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    finish_reason: str = "interrupted"
    stats: Stats = field(default_factory=Stats)

    def read(self, pieces: Iterable[Piece], write: Callable[[str], None]) -> None:
        """Take all pieces, writing each as it comes."""
        for piece in pieces:
            self.text += piece.text
            write(piece.text)
            if piece.finish_reason is not None:
                self.finish_reason = piece.finish_reason
            if piece.stats is not None:
                self.stats = piece.stats


def answer_json(
    answer: Answer,
    *,
    model: Path,
    seed: int,
    n_ctx: int,
    load_s: float,
    phases: Mapping[str, float],
    hot_off: str = "",
) -> dict[str, object]:
    """The object that `dots prompt --json` prints; `hot_off` is why hot experts are.

    `phases`: the seconds that the parts of the load took.
    """
    stats = answer.stats
    no_hot = {"reason": hot_off} if hot_off else None
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": str(model),
        "seed": seed,
        "n_ctx": n_ctx,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
        },
        "timings": {
            "load_s": round(load_s, 4),
            "load": {name: round(seconds, 4) for name, seconds in phases.items()},
            "ttft_s": round(stats.ttft_s, 4),
            "prefill_tps": round(stats.prefill_tps, 2),
            "decode_tps": round(stats.decode_tps, 2),
        },
        "hot": no_hot if stats.hot is None else hot_json(stats.hot),
        "ram": None if stats.ram is None else ram_json(stats.ram, stats.completion_tokens - 1),
        "draft": {
            "drafted_tokens": stats.drafted_tokens,
            "accepted_tokens": stats.accepted_tokens,
        },
    }


def hot_json(hot: HotFigures) -> dict[str, object]:
    """Hot experts in that object; its figures are of the answer but for the first six."""
    return {
        "device": hot.device,
        "resident_experts": hot.resident_experts,
        "n_experts": hot.n_experts,
        "layers_off": hot.layers_off,
        "uploads": hot.uploads,
        "uploaded_bytes": hot.uploaded_nbytes,
        "streamed_bytes": hot.streamed_nbytes,
        "hit_rate": round(hot.hit_rate, 4),
        "prefill_hit_rate": round(hot.prefill_hit_rate, 4),
        "cpu_s": round(hot.cpu_s, 4),
        "device_s": round(hot.device_s, 4),
        "wait_s": round(hot.wait_s, 4),
    }


def ram_json(ram: RamFigures, n_decoded: int) -> dict[str, object]:
    """The memory tier in that object; its figures are of the answer but for the first five."""
    return {
        "resident_experts": ram.resident_experts,
        "n_experts": ram.n_experts,
        "resident_bytes": ram.resident_nbytes,
        "budget_bytes": ram.budget_nbytes,
        "direct": ram.direct,
        "hit_rate": round(ram.hit_rate, 4),
        "read_bytes": ram.read_nbytes,
        "read_bytes_per_token": ram.decode_read_nbytes // n_decoded if n_decoded > 0 else 0,
        "wait_s": round(ram.wait_s, 4),
    }


def stats_line(
    stats: Stats,
    *,
    n_ctx: int,
    seed: int,
    finish_reason: str = "stop",
    width: int = 0,
    load_s: float = 0.0,
) -> str:
    """One line of figures: `312 tok · 4.1 tok/s · prefill 154 tok @ 38 tok/s (1,050 reused) ...`

    Where `width` columns are not enough, what matters least is left out; 0 is as wide as it takes.
    """
    reasons = {"length": "length limit", "context": "context full", "interrupted": "stopped"}
    why = f" ({reasons[finish_reason]})" if finish_reason in reasons else ""
    parts = [f"{stats.completion_tokens:,} tok{why}"]
    if stats.decode_tps:
        parts.append(f"{rate(stats.decode_tps)} tok/s")
    read = stats.prompt_tokens - stats.reused_tokens
    prefill = f"prefill {read:,} tok"
    if stats.prefill_tps:
        prefill += f" @ {rate(stats.prefill_tps)} tok/s"
    if stats.reused_tokens:
        prefill += f" ({stats.reused_tokens:,} reused)"
    parts.append(prefill)
    if stats.drafted_tokens:
        parts.append(f"draft {stats.accepted_tokens}/{stats.drafted_tokens}")
    if stats.hot is not None:
        hot = stats.hot
        parts.append(f"hot {hot.resident_share:.0%} @ {hot.hit_rate:.0%} hits")
    if stats.ram is not None:
        parts.append(f"RAM {stats.ram.resident_share:.0%} @ {stats.ram.hit_rate:.0%} hits")
    if stats.ttft_s:
        parts.append(f"TTFT {stats.ttft_s:.2f} s")
    if load_s >= LONG_LOAD_S:
        parts.append(f"load {load_s:.1f} s")
    used = min(stats.prompt_tokens + stats.completion_tokens, n_ctx)
    parts.append(f"ctx {short(used)}/{short(n_ctx)}")
    parts.append(f"seed {seed}")
    for least in ("load", "TTFT", "draft", "ctx", "RAM", "hot", "prefill"):
        if 0 < width <= len(" · ".join(parts)):
            parts = [part for part in parts if not part.startswith(least)]
    return " · ".join(parts)


def status_line(stats: Stats, n_ctx: int) -> str:
    """The figures of an answer while it comes: `42 tok · 4.1 tok/s · ctx 1.6k/8k · RAM 30%`."""
    parts = [f"{stats.completion_tokens:,} tok"]
    if stats.decode_tps:
        parts.append(f"{rate(stats.decode_tps)} tok/s")
    used = min(stats.prompt_tokens + stats.completion_tokens, n_ctx)
    parts.append(f"ctx {short(used)}/{short(n_ctx)}")
    if stats.hot is not None:
        parts.append(f"hot {stats.hot.resident_share:.0%} @ {stats.hot.hit_rate:.0%} hits")
    if stats.ram is not None:
        parts.append(f"RAM {stats.ram.resident_share:.0%} @ {stats.ram.hit_rate:.0%} hits")
    return " · ".join(parts)


def rate(value: float) -> str:
    """A speed with two or three digits."""
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def short(count: int) -> str:
    """A number of tokens in few characters: 812, 1.6k, 33k."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


@contextmanager
def answer_writer(
    terminal: Terminal, *, markdown: bool, status: Callable[[], str] = lambda: ""
) -> Iterator[Callable[[str], None]]:
    """What writes an answer to stdout: as it is, or on a terminal with its Markdown drawn.

    Args:
        status: a line below the drawing, "" for none.
    """
    if not (markdown and terminal.draws):
        yield terminal.write
        return
    from dotscli.terminal.live import Live

    live = Live(
        terminal.paint,
        lambda: (terminal.width, terminal.height),
        terminal.colour(terminal.stdout_is_tty),
        status,
    )
    try:
        yield live.feed
    finally:
        live.end()


def with_prefill(
    terminal: Terminal, start: Callable[[Callable[[int, int], None]], Iterator[Piece]]
) -> Iterator[Piece]:
    """The pieces of an answer, with progress on stderr until the first one is there."""
    progress = terminal.progress("reading the prompt", 0, "tok")

    def on_prefill(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    with closed(start(on_prefill)) as pieces:
        with progress:
            first = next(pieces, None)
        if first is not None:
            yield first
        yield from pieces
