"""`dots calibrate`: runs a model over texts and writes an importance matrix with counts per expert.

What the model computes is collected in `dotscli.engine`, added up and kept in
`dotscli.quantize.imatrix.sums`; here it is decided what is read, and told how far it is, and how
well each layer's experts are covered. stdout gets the path of the file.
"""

from __future__ import annotations

import shlex
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.commands.model import open_engine, resolve
from dotscli.commands.settings import engine_options
from dotscli.errors import DotsError, usage
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import GgufFile, read_gguf
from dotscli.models.regular_file import check_replaceable
from dotscli.options.calibrate import CalibrateFlags
from dotscli.options.engine import EngineFlags, PlacementFlags
from dotscli.quantize.imatrix.coverage import LayerCoverage, coverage
from dotscli.quantize.imatrix.importance import load_importance
from dotscli.quantize.imatrix.sums import Calibration, identity
from dotscli.quantize.output.part_file import check_place, part_of
from dotscli.terminal.reading import MAX_TEXT_NBYTES, too_long
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import aligned, format_bytes, format_seconds

BATCH = 512  # tokens evaluated at once: one graph, as llama.cpp computes no more in one
COLUMNS = ("layer", "experts", "seen", "min tokens", "median", "thin")
MAX_LISTED = 8  # thin experts of a layer that the table names


@dataclass(frozen=True)
class Work:
    """What is to be read: whole chunks of all texts' tokens, one text after the other."""

    tokens: Sequence[int]
    chunk_size: int
    n_chunks: int

    def chunk(self, number: int) -> Sequence[int]:
        """The tokens of one chunk."""
        return self.tokens[number * self.chunk_size : (number + 1) * self.chunk_size]


def calibrate(
    terminal: Terminal, model: str, flags: CalibrateFlags, placement: PlacementFlags, json: bool
) -> None:
    """Collect, write, and say what was covered.

    Raises:
        DotsError: the model or a text can't be used, the output exists or can't be written.
    """
    texts = flags.file or []
    if not texts:
        raise usage("no text to calibrate on", f"dots calibrate {shlex.quote(model)} -f TEXT")
    if not flags.chunks:
        raise usage("--chunks is 0", "give a number of chunks, or -1 for all")
    path = resolve(model, terminal)
    gguf = read_gguf(path)
    check_dots1(gguf)
    out = _output(path, texts, flags)
    work = _read(terminal, path, texts, flags)
    if flags.dry_run:
        _show_plan(terminal, gguf, out, work, json)
        return
    made_of = identity(path, work.tokens, work.chunk_size)
    datasets = tuple(str(text).encode("utf-8", "replace").decode() for text in texts)
    sums = Calibration(out, made_of, datasets, work.chunk_size, restart=flags.force)
    n_kept, started = sums.n_chunks, time.monotonic()
    if n_kept:
        terminal.note(f"resuming: {n_kept} of {work.n_chunks} chunks are done")
    try:
        _collect(terminal, path, work, placement, sums)
    except BaseException:
        sums.save()
        if sums.n_chunks:
            terminal.note(
                f"{sums.n_chunks} chunks are kept in {sums.part}: run the same command to resume"
            )
        raise
    sums.finish()
    seconds = time.monotonic() - started
    terminal.note(
        f"{sums.n_chunks - n_kept} chunks in {format_seconds(seconds)}. Use it with: "
        f"dots quantize CHECKPOINT --imatrix {shlex.quote(str(out))}"
    )
    _report(terminal, out, sums.n_chunks * work.chunk_size, seconds, json)


def _output(model: Path, texts: Sequence[Path], flags: CalibrateFlags) -> Path:
    out = flags.out or Path(f"{model.stem}.imatrix.gguf")
    if out.is_dir():
        raise DotsError(f"{out} is a folder", hint=f"-o {out / f'{model.stem}.imatrix.gguf'}")
    if flags.dry_run:  # nothing is written, so nothing can be in the way
        return out
    check_replaceable(out)
    if out.exists() and not flags.force:
        raise DotsError(f"{out} already exists", hint="--force replaces it")
    check_place(out, (out, part_of(out)), (model, *texts))
    return out


def _read(terminal: Terminal, model: Path, texts: Sequence[Path], flags: CalibrateFlags) -> Work:
    """Tokens of the texts, by the vocabulary alone: no weight is read for it."""
    from dotscli.engine.vocab import vocabulary_of

    size = flags.ctx_size
    tokens = array("i")  # a list would take nine times as much
    n_left = MAX_TEXT_NBYTES
    with vocabulary_of(model) as vocabulary:
        for path in texts:
            text = terminal.read_file(path)
            n_left -= len(text)
            if n_left < 0:
                raise too_long("all the text together")
            tokens.extend(vocabulary.tokenize(text, parse_special=flags.parse_special))
    n_chunks = len(tokens) // size
    if not n_chunks:
        raise DotsError(
            f"the text has only {len(tokens)} tokens, and one chunk takes {size}",
            hint="give more text, or a smaller --ctx-size",
        )
    return Work(tokens, size, n_chunks if flags.chunks < 0 else min(flags.chunks, n_chunks))


def _collect(
    terminal: Terminal, path: Path, work: Work, placement: PlacementFlags, sums: Calibration
) -> None:
    from dotscli.engine.collect import Collector

    if sums.n_chunks >= work.n_chunks:
        return
    options = engine_options(
        EngineFlags(**vars(placement), ctx_size=work.chunk_size, batch_size=BATCH, hot="off"),
        path.parent,
    )
    collector = Collector()
    with (
        open_engine(terminal, path, options, collector) as engine,
        terminal.progress("calibrating", work.n_chunks, "chunks") as progress,
    ):
        while sums.n_chunks < work.n_chunks:
            progress.update(sums.n_chunks)
            sums.add(engine.collect(work.chunk(sums.n_chunks), collector))
        progress.update(sums.n_chunks)


def _show_plan(terminal: Terminal, gguf: GgufFile, out: Path, work: Work, json: bool) -> None:
    """--dry-run. Measured are the matrices of the layers: all their weights but the norms."""
    measured = [t for t in gguf.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    nbytes = sum(4 * (tensor.shape[0] + 1) * tensor.n_experts for tensor in measured)
    if json:
        terminal.json(
            {
                "output": str(out),
                "tokens": len(work.tokens),
                "chunk_size": work.chunk_size,
                "chunks": work.n_chunks,
                "entries": len(measured),
                "bytes": nbytes,
            }
        )
        return
    terminal.write(
        f"{len(work.tokens)} tokens: {work.n_chunks} chunks of {work.chunk_size} would be read, "
        f"{len(measured)} tensors measured, {format_bytes(nbytes)} written to {out}. "
        "Nothing was written.\n"
    )


def _report(terminal: Terminal, out: Path, n_tokens: int, seconds: float, json: bool) -> None:
    matrix = load_importance(out)
    layers = coverage(matrix)
    if json:
        terminal.json(
            {
                "path": str(out),
                "bytes": out.stat().st_size,
                "chunks": matrix.n_chunks,
                "tokens": n_tokens,
                "seconds": round(seconds, 3),
                "entries": len(matrix.entries),
                "layers": [layer.as_json() for layer in layers],
            }
        )
        return
    for line in aligned(COLUMNS, [_row(layer) for layer in layers], COLUMNS[:5]):
        terminal.note(line)
    n_thin = sum(len(layer.thin) for layer in layers)
    if n_thin:
        n_experts = sum(layer.n_experts for layer in layers)
        terminal.warn(
            f"{n_thin} of {n_experts} experts saw fewer than {matrix.thin_tokens} tokens: "
            "dots quantize blends their importance with their layer's; more text would cover them"
        )
    terminal.write(f"{out}\n")


def _row(layer: LayerCoverage) -> tuple[str, ...]:
    thin = " ".join(str(expert) for expert in layer.thin[:MAX_LISTED])
    if len(layer.thin) > MAX_LISTED:
        thin += f" and {len(layer.thin) - MAX_LISTED} more"
    counts = (layer.layer, layer.n_experts, layer.seen, layer.least, layer.median)
    return (*(str(count) for count in counts), thin or "-")
