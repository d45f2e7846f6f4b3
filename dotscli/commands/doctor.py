"""`dots doctor`: what is installed, which devices there are, and what does not work.

Facts are gathered into one value that --json prints as it is and that the tables are made of.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from dotscli import engine
from dotscli.commands.measure import bandwidth_facts, bandwidth_text, measure
from dotscli.engine.available import available_memory
from dotscli.engine.cores import cores
from dotscli.errors import DotsError
from dotscli.folders import cache_folder, config_path, heat_folder, models_folder, state_folder
from dotscli.hot.backend import unavailable
from dotscli.hot.verdict import all_known
from dotscli.options.doctor import DoctorFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes


def machine_facts(terminal: Terminal, problems: list[DotsError]) -> dict[str, Any]:
    """What is installed and which devices llama.cpp sees; what doesn't work joins `problems`."""
    memory, found = available_memory(), cores()
    facts: dict[str, Any] = {
        "versions": {
            "dots": importlib.metadata.version("dotscli"),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "devices": [],
        "rpc": False,
        "caveats": [],
        "problems": [],
        "memory": {
            "free_bytes": memory.nbytes,
            "total_bytes": memory.total,
            "limited_by": memory.limited_by,
        },
        "cores": {"physical": found.physical, "fast": found.fast, "threads": found.n_threads},
        "bandwidths": bandwidth_facts(terminal),
        "hot_backend": {"available": False, "reason": "llama.cpp doesn't work", "measured": []},
        "paths": {
            "config": str(config_path(terminal.environ)),
            "models": str(models_folder(terminal.environ)),
            "cache": str(cache_folder(terminal.environ)),
            "history": str(state_folder(terminal.environ)),
            "heat": str(heat_folder(terminal.environ)),
        },
    }
    try:
        facts["versions"] |= engine.versions()
        facts["devices"] = [
            {
                "name": device.name,
                "type": device.type,
                "description": device.description,
                "free_bytes": device.free_bytes,
                "total_bytes": device.total_bytes,
            }
            for device in engine.devices()
        ]
        facts["rpc"] = engine.has_rpc()
        facts["caveats"] = [*engine.caveats(), *engine.idle_backends()]
        reason = unavailable()
        facts["hot_backend"] |= {
            "available": not reason,
            "reason": reason,
            "measured": [
                {"model": model, "on": key, "pays": known.pays, "finding": known.describe()}
                for model, key, known in all_known(heat_folder(terminal.environ))
            ],
        }
    except DotsError as error:
        problems.append(error)
    facts["problems"] = [f"{problem.message} ({problem.hint})" for problem in problems]
    return facts


def doctor(
    terminal: Terminal,
    flags: DoctorFlags,
    as_json: bool,
    config_problem: DotsError | None = None,
) -> None:
    """Say what is installed, which devices there are and what does not work.

    Args:
        flags: whether bandwidths are measured first, and kept.
        config_problem: why config.toml can't be used.

    Raises:
        DotsError: something does not work, after everything else has been said.
    """
    problems = [config_problem] if config_problem is not None else []
    if flags.measure is not None:
        measure(terminal, flags.measure)
    facts = machine_facts(terminal, problems)
    if as_json:
        terminal.json(facts)
    else:
        show(terminal, facts)
    for problem in problems[:-1]:
        terminal.error(problem.message, problem.hint)
    if problems:
        raise problems[-1]


def show(terminal: Terminal, facts: dict[str, Any]) -> None:
    """The facts as tables."""
    terminal.table(("program", "version"), list(facts["versions"].items()))
    terminal.write("\n")
    rows = [
        (d["name"], d["type"], format_bytes(d["free_bytes"]), format_bytes(d["total_bytes"]),
         d["description"])
        for d in facts["devices"]
    ]  # fmt: skip
    terminal.table(
        ("device", "type", "free", "total", "description"), rows, right=("free", "total")
    )
    memory = facts["memory"]
    terminal.write("\n")
    terminal.paragraph(cores().describe(), "cores        ")
    text = f"{format_bytes(memory['free_bytes'])} free of {format_bytes(memory['total_bytes'])}"
    limit = f", the limit of {memory['limited_by']}" if memory["limited_by"] else ""
    terminal.paragraph(text + limit, "main memory  ")
    terminal.paragraph(bandwidth_text(facts["bandwidths"]), "bandwidths   ")
    hot = facts["hot_backend"]
    gpu = any(device["type"] == "GPU" for device in facts["devices"])
    can = "yes" if gpu else "yes, with a GPU; without one, try --hot 1M --hot-device CPU"
    terminal.paragraph(can if hot["available"] else f"no: {hot['reason']}", "hot experts  ")
    for known in hot["measured"]:
        terminal.paragraph(f"{known['model']}, {known['on']}: {known['finding']}", " " * 13)
    without = "llama-cpp-python was built without -DGGML_RPC=on"
    works = "llama.cpp" in facts["versions"]
    rpc = "yes" if facts["rpc"] else f"no: {without if works else hot['reason']}"
    terminal.paragraph(rpc, "RPC workers  ")
    terminal.write("\n")
    terminal.table(("folder", "where"), list(facts["paths"].items()))
    for caveat in facts["caveats"]:
        terminal.warn(caveat)
