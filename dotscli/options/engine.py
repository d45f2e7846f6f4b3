"""The options of a model that runs: where it runs, its cache, hot experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import CacheTypeK, CacheTypeV, CtxSize, Heat, Panel, Ram, Threads


@dataclass(frozen=True)
class PlacementFlags:
    """Where a model runs; names and values as in llama.cpp."""

    threads: Threads = 0
    threads_batch: Annotated[
        int,
        typer.Option(
            "--threads-batch", "-tb", rich_help_panel=Panel.RUN,
            help="Threads for reading the prompt; 0: as --threads.",
        ),
    ] = 0  # fmt: skip
    n_gpu_layers: Annotated[
        str,
        typer.Option(
            "--n-gpu-layers", "-ngl", envvar="DOTS_N_GPU_LAYERS", metavar="N",
            rich_help_panel=Panel.PLACEMENT, help="Layers on the GPU: a number, all or auto.",
        ),
    ] = "auto"  # fmt: skip
    cpu_moe: Annotated[
        bool,
        typer.Option(
            "--cpu-moe", "-cmoe", rich_help_panel=Panel.PLACEMENT,
            help="Keep all routed experts on the CPU.",
        ),
    ] = False  # fmt: skip
    n_cpu_moe: Annotated[
        int,
        typer.Option(
            "--n-cpu-moe", "-ncmoe", rich_help_panel=Panel.PLACEMENT,
            help="Keep routed experts of the first N layers on the CPU.",
        ),
    ] = 0  # fmt: skip
    override_tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--override-tensor", "-ot", metavar="REGEX=BUFFER", rich_help_panel=Panel.PLACEMENT,
            help="Put matching tensors into a buffer type; repeatable.",
        ),
    ] = None  # fmt: skip
    flash_attn: Annotated[
        str,
        typer.Option(
            "--flash-attn", "-fa", metavar="WHEN", rich_help_panel=Panel.PLACEMENT,
            help="Flash attention: on, off or auto.",
        ),
    ] = "auto"  # fmt: skip
    rpc: Annotated[
        str,
        typer.Option(
            "--rpc", metavar="HOST:PORT,...", rich_help_panel=Panel.PLACEMENT,
            help="Workers (dots worker) to use as devices.",
        ),
    ] = ""  # fmt: skip
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", rich_help_panel=Panel.OUTPUT, help="Show llama.cpp's log."),
    ] = False


@dataclass(frozen=True)
class EngineFlags(PlacementFlags):
    """What else is decided about a model that answers."""

    ctx_size: CtxSize = 0
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "-b",
            rich_help_panel=Panel.MODEL,
            help="Prompt tokens given to llama.cpp at once; 0: as --ubatch-size.",
        ),
    ] = 0
    ubatch_size: Annotated[
        int,
        typer.Option(
            "--ubatch-size",
            "-ub",
            rich_help_panel=Panel.MODEL,
            help="Tokens computed at once; 0: 512, and more where experts come from the disk.",
        ),
    ] = 0
    cache_type_k: CacheTypeK = "f16"
    cache_type_v: CacheTypeV = "f16"
    ram: Ram = None
    no_tier: Annotated[
        bool,
        typer.Option(
            "--no-tier", rich_help_panel=Panel.PLACEMENT,
            help="Leave experts that don't fit into memory to the system's page cache.",
        ),
    ] = False  # fmt: skip
    hot: Annotated[
        str,
        typer.Option(
            "--hot", envvar="DOTS_HOT", metavar="SIZE", rich_help_panel=Panel.HOT,
            help="Device memory for hot experts; auto: what is free on the GPU; off: none.",
        ),
    ] = "auto"  # fmt: skip
    hot_device: Annotated[
        str,
        typer.Option(
            "--hot-device", metavar="NAME", rich_help_panel=Panel.HOT,
            show_default="the GPU with the most free memory", help="Device for hot experts.",
        ),
    ] = ""  # fmt: skip
    heat: Heat = None
    heat_trace: Annotated[
        Path | None,
        typer.Option(
            "--heat-trace", metavar="FILE", rich_help_panel=Panel.HOT,
            help="Write which experts each token uses to a new file.",
        ),
    ] = None  # fmt: skip
    no_adapt: Annotated[
        bool,
        typer.Option(
            "--no-adapt",
            rich_help_panel=Panel.HOT,
            help="Keep the first hot experts; exchange none while answering.",
        ),
    ] = False
