"""What the scripts about quantizing share: the one pass as a process, and a row of their tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from bench.lib.measure import Run, dots, dots_env, run, spread

MB = 1e6
HEADER = ("", "wall s", "CPU s", "peak MB", "of it not page cache", "written MB", "time ratio")


def dots_quantize(
    checkpoint: Path, out: Path, type: str, threads: int, *flags: str | Path, native: bool = True
) -> Run:
    """The one pass; without the native quantizers every block goes through ggml's own."""
    out.unlink(missing_ok=True)
    return run(
        [*dots(), "quantize", checkpoint, "-o", out, "--type", type, "--threads", str(threads),
         *flags],
        env=dots_env() | ({} if native else {"DOTS_NATIVE": "0"}),
    )  # fmt: skip


def row(name: str, runs: list[Run], ratio: str = "") -> list[str]:
    """One line of a table; sizes in MB (1e6 bytes)."""

    def column(value: Callable[[Run], float | None]) -> str:
        values = [v for v in map(value, runs) if v is not None]
        return f"{statistics.median(values) / MB:,.0f}" if values else "?"

    cpu = f"{statistics.median(r.cpu_s for r in runs):.1f}"
    return [
        name,
        spread([r.wall_s for r in runs]),
        cpu,
        column(lambda r: r.peak_rss),
        column(lambda r: r.peak_private),
        column(lambda r: r.written),
        ratio,
    ]


def folder_bytes(checkpoint: Path) -> int:
    """Bytes of all shards, headers included."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
