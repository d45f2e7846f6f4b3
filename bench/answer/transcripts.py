"""Whether two checkouts behave alike: every command's transcript in one and in the other.

    python -m bench.answer.transcripts BEFORE AFTER

For a change that is to change nothing a user sees, such as moving modules. Both checkouts are run
by this Python with its installed packages, each in folders of its own; times, rates, memory and
versions are masked. Prints every difference; exit 1 if there is one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Takes a checkout's modules, also where another one is installed as editable.
START = (
    "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)"
    " and 'ScikitBuild' not in repr(f)]; sys.path.insert(0, {root!r});"
    "from dotscli.__main__ import main; sys.argv[0] = 'dots'; main()"
)
MASKED = re.compile(
    r"\d+(\.\d+)? (s|ms|min|h)\b|\d+(\.\d+)? ([KMGT]i)?B(/s)?\b|[\d.,]+ tok/s|[\d.]+ tokens/s"
    r'|"(load_s|ttft_s|prefill_tps|decode_tps|free_bytes|total_bytes|missing_bytes)": [\d.]+'
    r'|\d+ tokens per second|"seed": \d+|seed \d+|^.*\d+ % · .*\n|^parse: .*\n',
    re.MULTILINE,
)
COMMANDS = [
    ["--help"], ["--version"], [], ["nonsense"],
    *[[name, "--help"] for name in ("quantize", "verify", "calibrate", "prompt", "chat", "plan",
                                    "inspect", "worker", "doctor")],
    ["quantize", "{root}/models/nano", "--dry-run"],
    ["quantize", "{root}/models/nano", "--dry-run", "--json"],
    ["quantize", "{root}/tests/data/dots.llm1.inst", "--dry-run", "--json"],
    ["quantize", "{root}/models/nano", "-o", "nano.gguf", "--report", "errors.json", "-t", "1"],
    ["quantize", "{root}/models/nano", "-o", "nano.gguf"],
    ["quantize", "{root}/models/nano", "-o", "nano.gguf", "--type", "q9"],
    ["quantize", "nano.gguf", "-o", "again.gguf", "--type", "q4_0", "-t", "1"],
    ["quantize", "{root}/models/nano", "-o", "small.gguf", "--size", "6M", "-t", "1"],
    ["quantize", "{root}/models/nano", "--bpw", "4", "--size", "1G"],
    ["quantize", "nowhere", "-o", "x.gguf"],
    ["verify", "nano.gguf"], ["verify", "nano.gguf", "--against", "{root}/models/nano", "--json"],
    ["verify", "nowhere.gguf"],
    ["inspect", "nano.gguf"], ["inspect", "nano.gguf", "--json"], ["inspect", "{root}/models/nano"],
    ["inspect", "nano.gguf", "--experts", "--report", "errors.json"],
    ["inspect", "nowhere"],
    ["calibrate", "nano.gguf", "-f", "text.txt", "--dry-run"],
    ["calibrate", "nano.gguf", "-f", "text.txt", "--chunks", "2", "-o", "i.gguf", "-t", "1"],
    ["inspect", "i.gguf"], ["calibrate", "nano.gguf"],
    ["quantize", "{root}/models/nano", "-o", "im.gguf", "--imatrix", "i.gguf", "-t", "1"],
    ["plan", "nano.gguf", "--vram", "10M", "--ram", "64G"],
    ["plan", "nano.gguf", "--vram", "10M", "--ram", "64G", "--json"],
    ["plan", "{root}/tests/data/dots.llm1.inst/config.json", "--vram", "24G", "--ram", "64G"],
    ["plan", "nowhere"],
    ["prompt", "-m", "nano.gguf", "--temp", "0", "-t", "1", "What is dots?"],
    ["prompt", "-m", "nano.gguf", "--temp", "0", "-t", "1", "--json", "What is 23 + 45?"],
    ["prompt", "-m", "nano.gguf", "-t", "1", "--temp", "0", "--hot", "1M", "--hot-device", "CPU",
     "What is dots?"],
    ["prompt", "-m", "nano.gguf"], ["prompt", "-m", "nowhere", "hi"],
    ["prompt", "-m", "nano.gguf", "--temp", "-1", "hi"], ["prompt", "--grammar", "x", "hi"],
    ["prompt", "-t", "1", "--temp", "0", "-j", '{{"type": "integer"}}', "What is 2 + 3?"],
    ["doctor"], ["doctor", "--json"], ["worker", "--device", "nothing"],
]  # fmt: skip


def transcript(root: Path, command: list[str], folder: Path, stdin: str = "") -> str:
    """Exit status, stdout and stderr, without what differs from run to run."""
    words = [word.format(root=root) for word in command]
    own = {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("DATA", "CONFIG", "STATE", "CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", START.format(root=str(root)), *words],
        cwd=folder, input=stdin, capture_output=True, text=True, check=False,
        env={**os.environ, **own, "DOTS_THREADS": "1"},
    )  # fmt: skip
    text = f"exit {done.returncode}\n{done.stdout}\n--- stderr\n{done.stderr}"
    return MASKED.sub("#", text.replace(str(root), "ROOT").replace(str(folder), "FOLDER"))


def main() -> int:
    before, after = (Path(word).resolve() for word in sys.argv[1:3])
    n_different = 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        for folder in (one, other):
            Path(folder, "text.txt").write_text("A hot expert is one that is used much. " * 400)
        chat = ["chat", "-m", "nano.gguf", "--temp", "0", "-t", "1"]
        lines = "What is dots?\n/show info\n/undo\n/nothing\n/help\n/set temp 9\n/exit\n"
        for command, stdin in [*((c, "") for c in COMMANDS), (chat, lines)]:
            left = transcript(before, command, Path(one), stdin)
            right = transcript(after, command, Path(other), stdin)
            if left != right:
                n_different += 1
                print(f"=== dots {' '.join(command)}\n--- before\n{left}\n--- after\n{right}")
        left, right = ({p.name: p.read_bytes() for p in Path(folder).glob("*.gguf")}
                       for folder in (one, other))  # fmt: skip
        if left != right:
            n_different += 1
            print("the files that were written differ")
        print(f"{len(COMMANDS) + 1} commands, {len(left)} files, {n_different} differences")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
