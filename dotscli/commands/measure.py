"""`dots doctor --measure`: how fast weights go through the CPU, and a disk is, measured and kept.

What it says of them later comes from what was kept; `dots plan` reads the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotscli.engine.available import available_memory
from dotscli.folders import state_folder
from dotscli.hot.bandwidths import Bandwidths, keep, kept, mount_of
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes


def measure(terminal: Terminal, path: Path) -> None:
    """Measure, for two seconds, and keep the results.

    Raises:
        DotsError: too little free memory, a file that can't be used, or no llama.cpp.
    """
    from dotscli.engine.bandwidth import disk_bandwidth
    from dotscli.engine.weight_rate import weight_rate

    path = path.expanduser()
    disk = disk_bandwidth(path)
    mount = mount_of(path)
    ram = weight_rate(available_memory().nbytes)
    found = Bandwidths(ram, {mount: disk.bytes_per_s}, {mount: disk.direct})
    keep(state_folder(terminal.environ), found)


def bandwidth_facts(terminal: Terminal) -> dict[str, Any]:
    """What is known, in bytes per second."""
    known = kept(state_folder(terminal.environ))
    return {
        "ram_bytes_per_second": round(known.ram) or None,
        "disks": [
            {"mount": mount, "bytes_per_second": round(rate), "direct": known.direct[mount]}
            for mount, rate in known.disks.items()
        ],
    }


def bandwidth_text(facts: Mapping[str, Any]) -> str:
    """The same as a sentence."""
    if not facts["ram_bytes_per_second"]:
        return "not measured: dots doctor --measure MODEL.gguf"
    parts = [f"weights in main memory {format_bytes(facts['ram_bytes_per_second'])}/s"]
    for disk in facts["disks"]:
        how = "direct I/O" if disk["direct"] else "through the page cache, no direct I/O there"
        parts.append(f"disk at {disk['mount']} {format_bytes(disk['bytes_per_second'])}/s ({how})")
    return ", ".join(parts)
