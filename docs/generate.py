"""Write the generated parts of the documentation, or check that they are current.

    python docs/generate.py            write them
    python docs/generate.py --check    exit 1 and name what is stale

docs/commands.md is the `--help` of every command, dotscli/man/dots.1 the same for man,
dotscli/cli/completions.json what Tab offers. In the other documents the text between
`<!-- generated: NAME -->` and `<!-- end -->` is computed: the commands with their first line, the
size of the real model at every preset, its placement on several devices, the modules with the first
line of their docstring. It runs the command and reads the sources; it imports nothing of the
package.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN_PRESETS = (
    "q4", "iq4_xs", "mxfp4_moe", "q4_0", "iq4_nl", "q4_k_s", "q4_k_m", "q8_0", "bf16",
)  # fmt: skip
PLANNED_GIB = (8, 16, 24, 48, 80)
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def help_text(*words: str) -> str:
    """What `dots WORDS --help` prints on 100 columns, whatever is configured here."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DOTS_")}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", "XDG_CONFIG_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-m", "dotscli", *words, "--help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.replace("python -m dotscli", "dots").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def commands() -> dict[str, str]:
    """Command -> what its help says first, in the order of `dots --help`."""
    section = help_text().split("Commands:", 1)[1]
    names = [line.split()[0] for line in section.splitlines() if re.match(r"  \w", line)]
    return {name: " ".join(help_text(name).split("\n\n")[1].split()) for name in names}


def reference() -> str:
    """docs/commands.md."""
    parts = ["# Commands\n\nGenerated from `--help` by `make docs`.\n"]
    for name in ("", *commands()):
        title = f"dots {name}".strip()
        parts.append(f"## {title}\n\n```text\n{help_text(*name.split())}\n```\n")
    return "\n".join(parts)


def manual() -> str:
    """dotscli/man/dots.1: the same for man, as it stands."""
    about = "run dots.llm1 on your own machine"
    parts = [f'.TH DOTS 1 "" dots "{about}"', ".SH NAME", rf"dots \- {about}"]
    for name in ("", *commands()):
        text = help_text(*name.split()).removeprefix("Usage: ")
        lines = text.replace("\\", r"\e").replace("-", r"\-").splitlines()
        shown = [rf"\&{line}" if line[:1] in (".", "'") else line for line in lines]
        parts += [f".SH {f'dots {name}'.strip().upper()}", ".nf", *shown, ".fi"]
    return "\n".join(parts) + "\n"


# Run with the package: generating reads what the commands say of themselves.
TREE = """
import json
import typer
from dotscli.cli.app import app

DYNAMIC = {"--model": "gguf", "--template": "template"}
ARGUMENTS = {"model": "gguf", "gguf": "gguf"}
root = typer.main.get_command(app)
top = root.make_context("dots", [], resilient_parsing=True)

def said(text):
    return " ".join((text or "").split())

def values(param, context):
    return [[item.value, said(item.help)] for item in param.shell_complete(context, "")]

def option(param, context):
    names = sorted([*param.opts, *param.secondary_opts], key=lambda name: not name.startswith("--"))
    kind = DYNAMIC.get(names[0]) or values(param, context)
    takes = not param.is_flag
    return {"names": names, "help": said(param.help), "takes_value": takes, "values": kind}

def described(command, context):
    params = command.get_params(context)
    options = [p for p in params if p.param_type_name == "option"]
    arguments = [p for p in params if p.param_type_name == "argument"]
    return {
        "help": said(command.get_short_help_str(200)),
        "options": [option(p, context) for p in options],
        "arguments": [ARGUMENTS.get(p.name) or values(p, context) for p in arguments],
    }

tree = described(root, top)
tree["commands"] = {
    name: described(command, command.make_context(name, [], resilient_parsing=True, parent=top))
    for name, command in root.commands.items()
}
print(json.dumps(tree, ensure_ascii=False, separators=(",", ":")))
"""


def completions() -> str:
    """dotscli/cli/completions.json: what Tab offers, so that it need not be asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DOTS_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent"}
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-c", TREE], cwd=empty, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
    return done.stdout


def command_table() -> str:
    rows = [f"| `dots {name}` | {text} |" for name, text in commands().items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows]) + "\n"


def size_table() -> str:
    """Bytes and bits per weight of dots.llm1 at every preset, from its config.json alone."""
    rows = ["| `--type` | size on disk | bits per weight |", "|---|--:|--:|"]
    for preset in SHOWN_PRESETS:
        done = subprocess.run(
            [sys.executable, "-m", "dotscli", "quantize", "tests/data/dots.llm1.inst",
             "--type", preset, "--dry-run", "--json"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        plan = json.loads(done.stdout)
        gib = plan["total_bytes"] / 2**30
        rows.append(f"| `{preset}` | {gib:.1f} GiB | {plan['bpw']:.2f} |")
    return "\n".join(rows) + "\n"


def module_table() -> str:
    """Every installed module and the first sentence of its docstring."""
    rows = ["| module | what it is |", "|---|---|"]
    for top in ("dotscli", "quantize", "models"):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT / top).parts
            if inside[0] in ("nano", "quantize", "models"):
                continue
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summary = " ".join(text.split("\n\n")[0].split())
            rows.append(f"| `{path.relative_to(ROOT).as_posix()}` | {summary} |")
    return "\n".join(rows) + "\n"


def placement_table() -> str:
    """What `dots plan` does with the real model's shapes on devices of several sizes."""
    rows = [
        "| device memory | dense layers on it | experts on it | slots per layer | RAM for the rest "
        "| longest context | stock llama.cpp |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    for gib in PLANNED_GIB:
        done = subprocess.run(
            [sys.executable, "-m", "dotscli", "plan", "tests/data/dots.llm1.inst/config.json",
             "--type", "q4", "-c", "8192", "-ctk", "q8_0", "-ctv", "q8_0",
             "--vram", f"{gib}G", "--ram", "128G", "--json"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        plan = json.loads(done.stdout)
        layers, experts = plan["layers"], plan["experts"]
        slots = sorted({layer["slots"] for layer in layers if layer["expert_bytes"]})
        longest = {c["cache_type"]: c["longest"] for c in plan["contexts"]}["q8_0"]
        ram = plan["ram"]["total_bytes"] - plan["ram"]["free_bytes"] - plan["ram"]["margin_bytes"]
        cells = [
            f"{gib} GiB",
            f"{sum(layer['on_device'] for layer in layers)} of {len(layers)}",
            f"{experts['resident']} ({experts['resident'] / experts['total']:.0%})",
            " to ".join(str(n) for n in dict.fromkeys((slots[0], slots[-1]))),
            f"{ram / 2**30:.1f} GiB",
            str(longest or "none"),
            f"`{plan['options']['stock']}`",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


GENERATORS = {
    "commands": command_table,
    "modules": module_table,
    "placements": placement_table,
    "sizes": size_table,
}


def documents() -> dict[Path, str]:
    """Path -> what the file should contain now."""

    def fill(match: re.Match[str]) -> str:
        return match[1] + GENERATORS[match[2]]() + match[3]

    filled = {
        path: BLOCK.sub(fill, path.read_text(encoding="utf-8"))
        for path in (ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs/architecture.md")
    }
    made = {"docs/commands.md": reference(), "dotscli/man/dots.1": manual()}
    made["dotscli/cli/completions.json"] = completions()
    return {**{ROOT / name: text for name, text in made.items()}, **filled}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for path, text in documents().items():
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} is stale: run `make docs`" if check else f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
