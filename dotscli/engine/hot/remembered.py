"""Whether hot experts are known to pay here: what earlier loads found, and where it is kept."""

from __future__ import annotations

from pathlib import Path

from dotscli.engine.devices import Device
from dotscli.engine.lib import versions
from dotscli.hot.verdict import SUFFIX, Trials, circumstances


def trials_of(model: Path, heat_file: Path | None, device: Device, n_threads: int) -> Trials:
    """What is remembered of a model on a device with so many threads and this llama.cpp.

    Args:
        heat_file: where the model's heat is kept, the comparisons beside it; None keeps nothing.
    """
    key = circumstances(device.name, device.description, n_threads, versions()["llama.cpp"])
    return Trials(heat_file and heat_file.with_suffix(SUFFIX), model.name, key)


def refusal(trials: Trials | None, insists: bool) -> str:
    """Why not, if an earlier load has found that they don't pay and nobody insists; else empty."""
    finding = trials.known() if trials is not None else None
    if finding is None or finding.pays or insists:
        return ""
    return finding.describe()
