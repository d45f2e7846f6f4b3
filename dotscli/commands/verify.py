"""`dots verify`: says whether a GGUF is what was written, and what quantizing has cost it.

The work is done in `dotscli.quantize`; here it is put into words. Whatever differs becomes one
`error:` line each; the table of errors, or the JSON, goes to stdout.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError, ExitStatus
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes
from dotscli.views.tensor_groups import group_of

if TYPE_CHECKING:
    from dotscli.quantize.against import MatrixError

SHOWN = 20  # findings written out; --json has all
COLUMNS = ("tensors", "types", "matrices", "error", "worst", "where")
RIGHT = ("matrices", "error", "worst")


@dataclass
class Report:
    """What was looked at and what was found; the attributes are those of --json.

    Attributes:
        tensors, matrices: how many were looked at.
        checked_bytes: how many were compared with checksums; 0 if the file has none.
        damaged: what isn't as it was written, or as the checkpoint makes it.
        errors: with --against, the relative error of every matrix.
    """

    path: str
    tensors: int = 0
    matrices: int = 0
    checked_bytes: int = 0
    checksums: bool = False
    damaged: list[dict[str, object]] = field(default_factory=list)
    errors: list[MatrixError] | None = None


def verify(
    terminal: Terminal,
    path: Path,
    against: Path | None,
    tensors: Sequence[str],
    imatrix: Path | None,
    threads: int,
    json: bool,
) -> int:
    """Verify a file; the exit status.

    Raises:
        DotsError: the file's structure is broken, or it can't be compared.
    """
    if path.is_dir():
        raise DotsError(
            f"{path} is a folder, and dots verify checks GGUF files",
            hint=f"dots verify FILE.gguf --against {shlex.quote(str(path))}",
        )
    report = Report(str(path))
    _check(terminal, report, path, tensors, threads)
    if against is not None:
        _compare(terminal, report, path, against, tensors, imatrix, threads)
    if json:
        terminal.json(asdict(report))
    else:
        _write(terminal, report)
    for finding in report.damaged[:SHOWN]:
        terminal.error(str(finding["what"]))
    if len(report.damaged) > SHOWN:
        terminal.error(f"and {len(report.damaged) - SHOWN} more", "--json lists them all")
    return int(ExitStatus.ERROR if report.damaged else ExitStatus.OK)


def _check(
    terminal: Terminal, report: Report, path: Path, names: Sequence[str], threads: int
) -> None:
    from dotscli.quantize.verify import Damaged, Opened, Read, verify

    events = verify(path, names, threads)
    with closed(events), terminal.progress("checking", 1, "B") as progress:
        for event in events:
            match event:
                case Opened():
                    progress.total, report.checked_bytes = event.nbytes, event.hashed_nbytes
                    report.tensors, report.matrices = event.n_tensors, event.n_matrices
                    report.checksums = event.with_checksums
                case Read():
                    progress.update(event.done_nbytes)
                case Damaged():
                    report.damaged.append(asdict(event))


def _compare(
    terminal: Terminal,
    report: Report,
    path: Path,
    checkpoint: Path,
    names: Sequence[str],
    imatrix: Path | None,
    threads: int,
) -> None:
    from dotscli.quantize.against import Compared, Comparing, MatrixError, compare

    report.errors = []
    events = compare(path, checkpoint, names, imatrix, threads)
    with closed(events), terminal.progress("comparing", 1, "B") as progress:
        for event in events:
            match event:
                case Comparing():
                    progress.total = event.nbytes
                case Compared():
                    progress.update(event.done_nbytes)
                case MatrixError():
                    report.errors.append(event)
                    if event.n_different:
                        what = (
                            f"{path}: {_label(event)} ({event.type}) differs from {checkpoint} in "
                            f"{event.n_different} bytes; relative error {event.error:.2g}"
                        )
                        report.damaged.append(
                            {"what": what, "tensor": event.tensor, "expert": event.expert}
                        )


def _write(terminal: Terminal, report: Report) -> None:
    if report.errors is not None:
        terminal.table(COLUMNS, _rows(report.errors), RIGHT)
        terminal.write("\n")
    looked = f"{report.tensors} tensors, {report.matrices} matrices"
    if not report.checksums:
        checked = "the file has no checksums (it was written by another program)"
        if report.errors is None:
            checked += "; compare its bytes with --against CHECKPOINT"
    else:
        checked = f"checksums of {format_bytes(report.checked_bytes)} compared"
    n = len(report.damaged)
    verdict = f"{n} {'difference' if n == 1 else 'differences'}" if n else "no differences found"
    terminal.write(f"{looked}; structure valid; {checked}; {verdict}.\n")


def _rows(errors: Sequence[MatrixError]) -> list[tuple[str, ...]]:
    """One row per group of tensors: the mean and the largest relative error, and where that is."""
    groups: dict[str, list[MatrixError]] = {}
    for error in errors:
        groups.setdefault(group_of(error.tensor), []).append(error)
    rows: list[tuple[str, ...]] = []
    for group, members in groups.items():
        worst = max(members, key=lambda member: member.error)
        rows.append(
            (
                group,
                ", ".join(dict.fromkeys(member.type for member in members)),
                str(len(members)),
                f"{sum(member.error for member in members) / len(members):.5f}",
                f"{worst.error:.5f}",
                _label(worst) if worst.error else "",
            )
        )
    return rows


def _label(error: MatrixError) -> str:
    return error.tensor if error.expert is None else f"{error.tensor}, expert {error.expert}"
