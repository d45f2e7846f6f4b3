"""`dots paths`: every place that dots reads or writes by itself."""

from __future__ import annotations

from dotscli.folders import all_paths
from dotscli.terminal.terminal import Terminal


def paths(terminal: Terminal, as_json: bool) -> None:
    """Print them, with which of them exist."""
    found = all_paths(terminal.environ)
    if as_json:
        terminal.json({name: str(path) for name, path in found.items()})
        return
    rows = [(name, str(path), "" if path.exists() else "not there") for name, path in found.items()]
    terminal.table(("what", "where", ""), rows)
