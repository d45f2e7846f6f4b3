"""`dots quantize`: shows the plan, the progress and what came out.

The decisions and the work are in `dotscli.quantize`; here they are only put into words. stdout
gets the path of the finished file, or the plan that --dry-run asks for.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.progress import closed, format_bytes, format_seconds
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.tally import COLUMNS, RIGHT, Stored, table_rows, tally
from dotscli.terminal import Terminal


@dataclass(frozen=True)
class Job:
    """Everything that the command line said."""

    checkpoint: Path
    output: Path | None
    type: str
    tensor_types: Sequence[str]
    imatrix: Path | None
    threads: int
    max_memory: int | None
    dry_run: bool
    force: bool
    json: bool


def output_path(job: Job) -> Path:
    """Where the GGUF goes: -o, or NAME-TYPE.gguf in the current folder."""
    if job.output is None:
        folder = job.checkpoint.resolve()
        name = (folder.parent if folder.is_file() else folder).name
        return Path(f"{name}-{job.type.lower()}.gguf")
    if job.output.is_dir():
        raise DotsError(f"{job.output} is a folder", hint=f"-o {job.output / output_name(job)}")
    return job.output


def output_name(job: Job) -> str:
    """The file name for a checkpoint and a type."""
    return f"{job.checkpoint.resolve().name}-{job.type.lower()}.gguf"


def show_plan(terminal: Terminal, job: Job) -> None:
    """--dry-run: what would be written, on stdout."""
    plan = plan_checkpoint(
        job.checkpoint, job.type, tensor_types=job.tensor_types, imatrix=job.imatrix
    )
    if job.json:
        terminal.json(plan.as_json())
        return
    stored = [
        Stored(tensor.name, tensor.type.name, tensor.nbytes, tensor.spec.n_elements)
        for tensor in plan.tensors
    ]
    terminal.table(COLUMNS, table_rows(tally(stored)), RIGHT)
    terminal.write(
        f"\n{len(plan.tensors)} tensors, {format_bytes(plan.total_bytes)}, {plan.bpw:.2f} bits per "
        f"weight. Nothing was written.\n"
    )


def quantize(terminal: Terminal, job: Job) -> None:
    """Quantize, with the progress on stderr; prints the path of the file.

    Raises:
        DotsError: anything wrong with the input, the options or the disk.
    """
    if job.dry_run:
        show_plan(terminal, job)
        return
    from dotscli.quantize.convert import Finished, Progress, Started, TensorDone

    out = output_path(job)
    started = time.monotonic()
    source_nbytes = 0
    stored: list[tuple[str, str, int]] = []
    events = quantize_checkpoint(
        job.checkpoint,
        out,
        job.type,
        tensor_types=job.tensor_types,
        imatrix=job.imatrix,
        threads=job.threads,
        max_memory=job.max_memory,
        force=job.force,
    )
    with closed(events), terminal.progress("quantizing", 1, "B") as progress:
        for event in events:
            match event:
                case Started():
                    source_nbytes = progress.total = event.source_nbytes
                    for warning in event.warnings:
                        terminal.warn(warning)
                    terminal.note(
                        f"{event.n_tensors} tensors, {format_bytes(source_nbytes)} -> {out}: "
                        f"{format_bytes(event.out_nbytes)}, {event.bpw:.2f} bits per weight"
                    )
                case Progress():
                    progress.update(event.done_nbytes)
                case TensorDone():
                    stored.append((event.name, event.type, event.nbytes))
                case Finished():
                    out = event.path
    seconds = time.monotonic() - started
    nbytes = sum(nbytes for _, _, nbytes in stored)
    terminal.note(
        f"done in {format_seconds(seconds)}, {format_bytes(source_nbytes / max(seconds, 1e-9))}/s: "
        f"{format_bytes(source_nbytes)} -> {format_bytes(nbytes)}. "
        f'Try it: dots prompt -m {shlex.quote(str(out))} "What is dots?"'
    )
    if job.json:
        terminal.json(
            {
                "path": str(out),
                "bytes": out.stat().st_size,
                "source_bytes": source_nbytes,
                "seconds": round(seconds, 3),
                "tensors": [
                    {"name": name, "type": kind, "bytes": size} for name, kind, size in stored
                ],
            }
        )
    else:
        terminal.write(f"{out}\n")
