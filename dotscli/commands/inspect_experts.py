"""`dots inspect --experts`: how much each expert is used and what quantizing has cost it.

Heat comes from a heat file, an importance matrix, or what earlier runs have kept of a model; errors
from a report of `dots quantize --report`. Maps are made by `dotscli.views.expert_maps` and plotted
by `dotscli.views.expert_plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.folders import heat_folder
from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.hot.kept_heat import KeptHeat
from dotscli.hot.model_cost import file_cost
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import GgufFile, read_gguf
from dotscli.quantize.output.error_report import TensorErrors, is_report, read_report
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes
from dotscli.views.expert_figures import (
    LayerHeat,
    by_projection,
    expert_errors,
    layer_heat,
    whole_experts,
    worst,
)
from dotscli.views.expert_maps import ExpertMap, colour_lines, error_map, heat_map, shade_lines

N_WORST = 10
N_SHOWN = 10  # layers whose dead experts are listed; --json has all
HOW = (
    "nothing is known about its experts yet. Heat comes from answers that use hot experts, or "
    "--heat FILE (a heat file or importance matrix); errors come from dots quantize --report "
    "FILE.json, then --report FILE.json here."
)


@dataclass(frozen=True)
class Known:
    """What is known of a model's experts, and from where; empty where nothing is."""

    layers: tuple[LayerHeat, ...] = ()
    heat_from: str = ""
    tensors: tuple[TensorErrors, ...] = ()
    errors_from: str = ""

    def maps(self) -> list[ExpertMap]:
        """A map of heat and one of errors, as far as they are known."""
        found = []
        if self.layers:
            values = {layer.layer: layer.relative() for layer in self.layers}
            found.append(
                heat_map(values, {layer.layer: f"{layer.entropy:.2f}" for layer in self.layers})
            )
        if rows := whole_experts(expert_errors(self.tensors)):
            notes = {layer: f"{100 * sum(row) / len(row):.2f}" for layer, row in rows.items()}
            found.append(error_map(rows, notes))
        return found


def inspect_experts(
    terminal: Terminal,
    path: Path,
    heat: Path | None,
    report: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show heat and error of a model's experts.

    Args:
        path: a GGUF of a model, or the importance matrix, heat file or report itself.
        heat, report: files to take the figures from instead.
        plot: draw the maps there as well, .png or .svg; force: replace that file.

    Raises:
        DotsError: a file that can't be read, or is of another model.
    """
    known = gather(terminal, path, heat, report)
    if plot is not None:
        from dotscli.views.expert_plot import write_plot

        write_plot(plot, path.name, known.maps(), force)
    if as_json:
        terminal.json({"path": str(path), "heat": heat_json(known), "error": error_json(known)})
        return
    if not known.layers and not known.tensors:
        terminal.write(f"{path}: {HOW}\n")
    for shown in known.maps():
        if shown.title.startswith("heat"):
            _draw(terminal, shown, known.heat_from)
            _write_heat(terminal, known.layers)
        else:
            _draw(terminal, shown, known.errors_from)
            _write_errors(terminal, known.tensors)


def gather(terminal: Terminal, path: Path, heat: Path | None, report: Path | None) -> Known:
    """Everything that is known of the experts of `path`; see `inspect_experts`."""
    if not path.is_file():
        raise DotsError(
            f"{path} is not a file",
            hint="give a GGUF, an importance matrix, a heat file or a report",
        )
    gguf: GgufFile | None = None
    if path.suffix == ".json":
        if is_report(path):
            report = report or path
        else:
            heat = heat or path
    else:
        gguf = read_gguf(path)
        if gguf.metadata.get("general.type") == "imatrix":
            gguf, heat = None, heat or path
    counts, heat_from = _heat(terminal, gguf, heat)
    tensors = () if report is None else read_report(report)
    if gguf is not None and tensors:
        _check_report(gguf, report, tensors)
    layers = tuple(layer_heat(counts)) if counts is not None else ()
    return Known(layers, heat_from, tensors, str(report or ""))


def _heat(terminal: Terminal, gguf: GgufFile | None, given: Path | None) -> tuple[Heat | None, str]:
    """The heat to show, and where it is from."""
    if gguf is None:
        return (None, "") if given is None else (heat_store.load(given), str(given))
    check_dots1(gguf)
    place = heat_store.file_of(gguf.path, heat_folder(terminal.environ))
    kept = KeptHeat(file_cost(gguf), place, given)
    if kept.problem:
        terminal.warn(kept.problem)
    return kept.heat, str(given) if given is not None else "answers on this machine"


def _check_report(gguf: GgufFile, report: Path | None, tensors: Sequence[TensorErrors]) -> None:
    theirs = {tensor.name: (tensor.type, tensor.nbytes) for tensor in tensors}
    ours = {tensor.name: (tensor.type_name, tensor.nbytes) for tensor in gguf.tensors}
    if theirs != ours:
        name = next(iter(dict(theirs.items() ^ ours.items())))
        raise DotsError(
            f"{report} does not belong to {gguf.path}: {name} differs",
            hint="dots quantize --report writes the report of the file it makes",
        )


def heat_json(known: Known) -> dict[str, Any] | None:
    """Figures of every layer; entropies in bits, None where there is no heat."""
    if not known.layers:
        return None
    return {"from": known.heat_from, "layers": [asdict(layer) for layer in known.layers]}


def error_json(known: Known) -> dict[str, Any] | None:
    """Relative errors of every expert and projection, None where there is no report."""
    if not known.tensors:
        return None
    errors = expert_errors(known.tensors)
    return {
        "from": known.errors_from,
        "projections": [asdict(found) for found in by_projection(known.tensors)],
        "layers": {str(layer): row for layer, row in whole_experts(errors).items()},
        "worst": [asdict(error) for error in worst(errors, N_WORST)],
        "tensors": [asdict(tensor) for tensor in known.tensors],
    }


def _draw(terminal: Terminal, shown: ExpertMap, source: str) -> None:
    terminal.write(f"{shown.title}\nfrom {source}\n\n")
    if terminal.colour(terminal.stdout_is_tty):
        true_colour = terminal.environ.get("COLORTERM", "") in ("truecolor", "24bit")
        for parts in colour_lines(shown, terminal.width, true_colour):
            terminal.styled([*parts, ("\n", "")])
    else:
        for line in shade_lines(shown, terminal.width):
            terminal.write(f"{line}\n")
    terminal.write("\n")


def _write_heat(terminal: Terminal, layers: Sequence[LayerHeat]) -> None:
    least, most = (pick(layers, key=lambda layer: layer.entropy) for pick in (min, max))
    skewed = max(layers, key=lambda layer: layer.skew)
    hottest = max(layers, key=lambda layer: layer.share)
    mean = sum(layer.skew for layer in layers) / len(layers)
    terminal.write(
        f"entropy  {least.entropy:.2f} bits (layer {least.layer}) to {most.entropy:.2f} "
        f"(layer {most.layer}); {most.most:.2f} would be perfectly even\n"
        f"skew     the hottest tenth of a layer gets {mean:.1f} times an even share "
        f"(layer {skewed.layer}: {skewed.skew:.1f})\n"
        f"hottest  expert {hottest.hottest} of layer {hottest.layer} gets {hottest.share:.1%} of "
        "its layer's tokens\n"
    )
    dead = [layer for layer in layers if layer.dead]
    n_dead = sum(len(layer.dead) for layer in dead)
    total = sum(len(layer.counts) for layer in layers)
    terminal.write(f"dead     {n_dead} of {total} experts got no tokens\n")
    for layer in dead[:N_SHOWN]:
        terminal.write(f"         layer {layer.layer}: {', '.join(map(str, layer.dead))}\n")
    if len(dead) > N_SHOWN:
        terminal.write(f"         and in {len(dead) - N_SHOWN} more layers; --json lists all\n")
    terminal.write("\n")


def _write_errors(terminal: Terminal, tensors: Sequence[TensorErrors]) -> None:
    weighted = {tensor.weighted for tensor in tensors if tensor.stacked}
    how = "by importance in some tensors, equally in others"
    if len(weighted) == 1:
        how = "by importance" if True in weighted else "equally (no importance matrix)"
    terminal.write(f"columns are weighted {how}\n\n")
    rows = [
        (
            found.projection,
            ", ".join(found.types),
            format_bytes(found.nbytes),
            f"{found.mean:.3%}",
            f"{found.worst.error:.3%}",
            f"layer {found.worst.layer}, expert {found.worst.expert}",
        )
        for found in by_projection(tensors)
    ]
    titles = ("experts", "types", "size", "mean error", "worst", "where")
    terminal.table(titles, rows, ("size", "mean error", "worst"))
    terminal.write(f"\nthe worst {N_WORST}\n")
    for error in worst(expert_errors(tensors), N_WORST):
        terminal.write(
            f"  {error.error:.3%}  layer {error.layer}, expert {error.expert}, "
            f"{error.projection} ({error.type})\n"
        )
