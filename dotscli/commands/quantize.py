"""`dots quantize`: shows the plan, the progress and what came out.

The decisions and the work are in `dotscli.quantize`; here they are only put into words. stdout
gets the path of the finished file, or the plan that --dry-run asks for.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from dotscli.errors import DotsError
from dotscli.options.quantize import QuantizeFlags
from dotscli.quantize import DEFAULT_TYPE, plan_steps, quantize_checkpoint
from dotscli.quantize.output.part_file import part_of
from dotscli.terminal.progress import Progress as Shown
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes, format_seconds
from dotscli.views.recipe_fit import COLUMNS as FIT_COLUMNS
from dotscli.views.recipe_fit import RIGHT as FIT_RIGHT
from dotscli.views.recipe_fit import fit_json, fit_rows
from dotscli.views.tensor_groups import COLUMNS, RIGHT, Stored, table_rows, tally

if TYPE_CHECKING:
    from collections.abc import Generator

    from dotscli.quantize.fit.fit import Fit
    from dotscli.quantize.fit.measure import Measuring
    from dotscli.quantize.plan import Plan
    from dotscli.quantize.run import Event


def output_path(checkpoint: Path, flags: QuantizeFlags) -> Path:
    """Where the GGUF goes: -o, or NAME-TYPE.gguf in the current folder."""
    if checkpoint.suffix == ".gguf":
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", checkpoint.stem)
    else:
        folder = checkpoint.resolve()
        stem = (folder.parent if folder.is_file() else folder).name
    budget = flags.budget()
    kind = budget.name if budget else Path(flags.type or DEFAULT_TYPE).stem.lower()
    name = f"{stem}-{kind}.gguf"
    if flags.out is None:
        return Path(name)
    if flags.out.is_dir():
        raise DotsError(f"{flags.out} is a folder", hint=f"-o {flags.out / name}")
    return flags.out


def show_plan(terminal: Terminal, checkpoint: Path, flags: QuantizeFlags, json: bool) -> None:
    """--dry-run: what would be written, on stdout."""
    steps = plan_steps(
        checkpoint,
        flags.type or DEFAULT_TYPE,
        tensor_types=flags.tensor_type or (),
        imatrix=flags.imatrix,
        budget=flags.budget(),
        split_max_size=flags.split_max_size,
        threads=flags.threads,
        blend=flags.blend,
    )
    plan, fit = _followed(terminal, steps)
    for warning in plan.warnings:
        terminal.warn(warning)
    if json:
        terminal.json(plan.as_json() | ({"groups": fit_json(fit)} if fit else {}))
        return
    if fit:
        terminal.table(FIT_COLUMNS, fit_rows(fit), FIT_RIGHT)
        terminal.write("\n")
    stored = [
        Stored(tensor.name, tensor.type.name, tensor.nbytes, tensor.spec.n_elements)
        for tensor in plan.tensors
    ]
    terminal.table(COLUMNS, table_rows(tally(stored)), RIGHT)
    terminal.write(
        f"\n{len(plan.tensors)} tensors, {format_bytes(plan.total_bytes)}, {plan.bpw:.2f} bits per "
        f"weight. Nothing was written.\n"
    )


def _followed(
    terminal: Terminal, steps: Generator[Measuring | Fit, None, Plan]
) -> tuple[Plan, Fit | None]:
    """The plan, and what a budget has chosen; with the progress of the measuring."""
    from dotscli.quantize.fit.fit import Fit

    fit = None
    with closed(steps), terminal.progress("measuring", 1, "B") as progress:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value, fit
            if isinstance(step, Fit):
                fit = step
            else:
                progress.total = step.total_nbytes
                progress.update(step.done_nbytes)


def quantize(terminal: Terminal, checkpoint: Path, flags: QuantizeFlags, json: bool) -> None:
    """Quantize, with the progress on stderr; prints the path of the file.

    Raises:
        DotsError: anything wrong with the input, the options or the disk.
    """
    if flags.dry_run:
        show_plan(terminal, checkpoint, flags, json)
        return
    started = time.monotonic()
    run = _Run()
    events = quantize_checkpoint(
        checkpoint,
        output_path(checkpoint, flags),
        flags.type or DEFAULT_TYPE,
        tensor_types=flags.tensor_type or (),
        imatrix=flags.imatrix,
        threads=flags.threads,
        max_memory=flags.max_memory,
        force=flags.force,
        restart=flags.restart,
        split_max_size=flags.split_max_size,
        blend=flags.blend,
        report=flags.report,
        budget=flags.budget(),
    )
    try:
        with closed(events), terminal.progress("quantizing", 1, "B") as progress:
            for event in events:
                run.follow(event, terminal, progress)
    finally:
        run.say_what_is_kept(terminal)
    seconds = time.monotonic() - started
    nbytes = sum(tensor["bytes"] for tensor in run.tensors)
    made = run.source_nbytes - run.resumed_nbytes
    terminal.note(
        f"done in {format_seconds(seconds)}, {format_bytes(made / max(seconds, 1e-9))}/s: "
        f"{format_bytes(run.source_nbytes)} -> {format_bytes(nbytes)}. "
        f'Try it: dots prompt -m {shlex.quote(str(run.path))} "What is dots?"'
    )
    if flags.report is not None:
        terminal.note(
            f"the error of every expert: dots inspect {shlex.quote(str(run.path))} --experts "
            f"--report {shlex.quote(str(flags.report))}"
        )
    if json:
        terminal.json(
            {
                "path": str(run.path),
                "bytes": run.nbytes,
                "source_bytes": run.source_nbytes,
                "seconds": round(seconds, 3),
                "tensors": run.tensors,
            }
        )
    else:
        terminal.write(f"{run.path}\n")


class _Stored(TypedDict):
    name: str
    type: str
    bytes: int


class _Run:
    """What the events of one run have told."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.finished = False
        self.nbytes = self.source_nbytes = self.resumed_nbytes = 0
        self.tensors: list[_Stored] = []

    def follow(self, event: Event, terminal: Terminal, progress: Shown) -> None:
        """Note it, and show what a person wants to see at once."""
        from dotscli.quantize.convert import Finished, Progress, Resumed, Started, TensorDone
        from dotscli.quantize.fit.fit import Fit
        from dotscli.quantize.fit.measure import Measuring

        match event:
            case Measuring():
                progress.label, progress.total = "measuring", event.total_nbytes
                progress.update(event.done_nbytes)
            case Fit():
                progress.label = "quantizing"
                progress.start_over()
                types = Counter(decision.type.name for decision in event.decisions)
                terminal.note(
                    "chosen: " + ", ".join(f"{name} x{n}" for name, n in types.most_common())
                )
            case Started():
                self.path, self.source_nbytes = event.path, event.source_nbytes
                progress.total = event.source_nbytes
                for warning in event.warnings:
                    terminal.warn(warning)
                terminal.note(
                    f"{event.n_tensors} tensors, {format_bytes(self.source_nbytes)} -> "
                    f"{event.path}: {format_bytes(event.out_nbytes)}, {event.bpw:.2f} bits per "
                    "weight"
                )
            case Resumed():
                self.resumed_nbytes = event.done_nbytes
                if event.n_damaged:
                    terminal.warn(
                        f"kept tensors that are damaged and will be made again: {event.n_damaged}"
                    )
                terminal.note(f"resuming: {event.n_tensors} tensors are kept")
                progress.start_over()
            case Progress():
                progress.update(event.done_nbytes)
            case TensorDone():
                self.tensors.append({"name": event.name, "type": event.type, "bytes": event.nbytes})
            case Finished():
                self.finished, self.path, self.nbytes = True, event.path, event.nbytes

    def say_what_is_kept(self, terminal: Terminal) -> None:
        """After an interruption or an error: whether the work is lost, and how to go on."""
        if self.path is None or self.finished:
            return
        part = part_of(self.path)
        if part.exists():
            terminal.note(
                f"finished tensors are kept in {part}: run the same command to resume, "
                "or add --restart to start over"
            )
