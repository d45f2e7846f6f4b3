"""Options that several commands have, each declared once and spelled as llama.cpp spells it.

An option is an annotation; a group of options is a frozen dataclass whose fields have such
annotations, and a command that is `grouped` takes whole groups as its parameters. The field's
default is the option's; `varied` gives a command another help or range as well. Options that have
their default elsewhere (the model's metadata, the engine) are None when nobody gave them. It knows
no model and no engine.
"""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dotscli.options.sizes import parse_size
from dotscli.options.values import gguf_files

MAX_TOKENS = 1 << 20  # of a context or an answer
MAX_THREADS = 512  # GGML_MAX_N_THREADS


class Panel(str, Enum):
    """The headings under which `--help` lists options."""

    INPUT = "Input"
    ANSWER = "Answer"
    SAMPLING = "Sampling"
    MODEL = "Model"
    TYPES = "Types"
    PLACEMENT = "Placement"
    HOT = "Hot experts"
    RUN = "Run"
    OUTPUT = "Output"


def varied(default: Any, **changes: Any) -> Any:
    """A field of a group whose option differs from its declaration in `changes`: help, min, ..."""
    return field(default=default, metadata=changes)


def preset_names(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion of --type."""
    from dotscli.quantize.recipe.presets import PRESETS

    return [(p.name, p.summary) for p in PRESETS if p.name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", envvar="DOTS_MODEL", metavar="MODEL", autocompletion=gguf_files,
        rich_help_panel=Panel.MODEL, show_default="the built-in nano model",
        help="GGUF file, the first file of a split model, a folder with one, or a name in the "
        "models folder (dots doctor shows where).",
    ),
]  # fmt: skip
File = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", "-f", metavar="FILE", rich_help_panel=Panel.INPUT,
        help="Text file to put before the question; - is stdin; repeatable.",
    ),
]  # fmt: skip
Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", metavar="FILE", rich_help_panel=Panel.TYPES,
        help="Importance matrix (GGUF or .dat).",
    ),
]  # fmt: skip
Type = Annotated[
    str | None,
    typer.Option(
        "--type", metavar="TYPE", autocompletion=preset_names, rich_help_panel=Panel.TYPES,
        show_default="q4",
        help="q4, f32, f16, bf16, q8_0, q4_0, q4_k_s, q4_k_m, iq4_nl, iq4_xs or mxfp4_moe; "
        "or a GGUF file, to copy its types.",
    ),
]  # fmt: skip
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE.json", rich_help_panel=Panel.OUTPUT,
        help="Write the relative error of every expert to this file.",
    ),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", rich_help_panel=Panel.OUTPUT, help="File to write."
    ),
]
Save = Annotated[
    bool | None,
    typer.Option(
        "--save/--no-save", rich_help_panel=Panel.OUTPUT, show_default="on at a terminal",
        help="Save what is said.",
    ),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option("--force", rich_help_panel=Panel.OUTPUT, help="Replace an existing file."),
]
Init = Annotated[
    bool, typer.Option("--init", "--example", rich_help_panel=Panel.RUN, help="Write examples.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=Panel.RUN, help="Show what would be done, without doing it."
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=Panel.OUTPUT, help="Print the result as one JSON document."
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads", "-t", envvar="DOTS_THREADS", min=0, max=MAX_THREADS,
        rich_help_panel=Panel.RUN, help="CPU threads; 0: one per physical core.",
    ),
]  # fmt: skip
CtxSize = Annotated[
    int,
    typer.Option(
        "--ctx-size", "-c", envvar="DOTS_CTX_SIZE", min=0, max=MAX_TOKENS,
        rich_help_panel=Panel.MODEL, help="Context size in tokens; 0: by free memory.",
    ),
]  # fmt: skip
CacheTypeK = Annotated[
    str,
    typer.Option(
        "--cache-type-k", "-ctk", metavar="TYPE", rich_help_panel=Panel.MODEL,
        help="Type of the K cache: f16, q8_0, q4_0, ...",
    ),
]  # fmt: skip
CacheTypeV = Annotated[
    str,
    typer.Option(
        "--cache-type-v", "-ctv", metavar="TYPE", rich_help_panel=Panel.MODEL,
        help="Type of the V cache.",
    ),
]  # fmt: skip
Ram = Annotated[
    int | None,
    typer.Option(
        "--ram", envvar="DOTS_RAM", metavar="SIZE", parser=parse_size,
        rich_help_panel=Panel.PLACEMENT, show_default="what is free",
        help="Main memory for the model; experts that don't fit are read when needed.",
    ),
]  # fmt: skip
Heat = Annotated[
    Path | None,
    typer.Option(
        "--heat", metavar="FILE", rich_help_panel=Panel.HOT,
        show_default="saved from earlier answers",
        help="How much each expert is used: a heat file or an importance matrix.",
    ),
]  # fmt: skip
