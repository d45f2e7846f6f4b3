"""`dots plan`: what goes where and what it costs, before anything is loaded.

Facts are gathered into one value that --json prints as it is and that the text is made of. The
decisions are those of `dotscli.hot.placement`; what a model costs comes from its GGUF's header, or
from the plan to quantize a checkpoint, for which config.json alone is enough.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dotscli.commands.model import resolve
from dotscli.commands.plan_facts import facts
from dotscli.errors import DotsError, ExitStatus
from dotscli.folders import heat_folder, state_folder
from dotscli.hot.bandwidths import kept
from dotscli.hot.contexts import KV_TYPES, advice, column
from dotscli.hot.memory_use import CTX_STEP, SHORT_CTX, SHORTEST_CTX, Verdict
from dotscli.hot.model_cost import ModelCost, TensorCost, file_cost, model_cost
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.slots import HeatCounts
from dotscli.options.plan import PlanFlags
from dotscli.terminal.terminal import Terminal
from dotscli.views.placement_table import show

DEFAULT_CTX = 8192
DEFAULT_TYPE = "q4"


def plan(terminal: Terminal, model: str, flags: PlanFlags, as_json: bool) -> None:
    """Print the plan for a model.

    Raises:
        DotsError: no such model, a file that can't be used, heat of another model.
    """
    name, cost, path = read_cost(terminal, model, flags.type)
    device, vram, notes = _device(flags.vram)
    n_ctx = flags.ctx_size or min(DEFAULT_CTX, cost.n_ctx_train)
    type_k, type_v = (_kv_type(kind) for kind in (flags.cache_type_k, flags.cache_type_v))
    request = Request(vram, _ram(flags.ram), n_ctx, type_k, type_v)
    heat, known = _heat(terminal, cost, path, flags.heat)
    notes += known
    found = place(cost, request, heat) if flags.ctx_size else loadable(cost, request, heat)
    if found.request != request:
        request = found.request
        notes.append(
            f"{n_ctx} tokens of context don't fit; without -c, a load takes {request.n_ctx} as well"
        )
    if n_ctx > cost.n_ctx_train:
        notes.append(f"the model was trained on contexts of at most {cost.n_ctx_train} tokens")
    columns = [column(cost, request, kind, heat) for kind in KV_TYPES]
    notes += advice(found, heat)
    bandwidths = _bandwidths(terminal, Path(model).expanduser() if path is None else path, flags)
    if as_json:
        terminal.json(facts(name, device, found, columns, notes, bandwidths))
        return
    show(terminal, name, device, found, columns, *bandwidths)
    for line in notes:
        terminal.paragraph(line, "- ")


def read_cost(
    terminal: Terminal, model: str, kind: str | None
) -> tuple[str, ModelCost, Path | None]:
    """What the model is called, what it costs, and its file if it is a GGUF.

    Raises:
        DotsError: neither a GGUF of dots.llm1 nor a checkpoint with a config.json.
    """
    path = Path(model).expanduser()
    is_checkpoint = path.name == "config.json" or (path / "config.json").is_file()
    if is_checkpoint and not any(path.glob("*.gguf")):
        kind = kind or DEFAULT_TYPE
        folder = (path.parent if path.is_file() else path).resolve()
        return f"{folder.name} as {kind}", checkpoint_cost(path, kind), None
    if kind is not None:
        raise DotsError(
            f"--type {kind} is for checkpoints, and {model} is not one",
            hint="leave out --type: a GGUF already has its types",
            exit_status=ExitStatus.USAGE,
        )
    path = resolve(model, terminal)
    return path.name, gguf_cost(path), path


def checkpoint_cost(path: Path, kind: str) -> ModelCost:
    """The cost of a checkpoint once it is quantized with a preset."""
    from dotscli.models.dots1 import Dots1
    from dotscli.quantize import plan_checkpoint

    decided = plan_checkpoint(path, kind)
    model = Dots1.load(path.parent if path.is_file() else path)
    return model_cost(
        (TensorCost(t.name, t.type.name, t.nbytes, t.spec.n_experts) for t in decided.tensors),
        n_experts_used=model.n_experts_used,
        n_ctx_train=model.n_ctx_train,
        n_embd=model.n_embd,
        vocab_size=model.vocab_size,
        kv_width=model.n_heads * model.head_dim,
    )


def gguf_cost(path: Path) -> ModelCost:
    """The cost of a GGUF, from its header."""
    from dotscli.models.check import check_dots1
    from dotscli.models.gguf_file import read_gguf

    gguf = read_gguf(path)
    check_dots1(gguf)
    return file_cost(gguf)


def _device(vram: int | None) -> tuple[str, int, list[str]]:
    """Name and free bytes of the device to plan for; 0 bytes where there is none."""
    if vram is not None:
        return "device" if vram else "", vram, []
    from dotscli.engine import devices

    gpus = sorted((d for d in devices() if d.type == "GPU"), key=lambda d: -d.free_bytes)
    if not gpus:
        note = "llama.cpp sees no GPU here, so all is in main memory; --vram 24G plans for one"
        return "", 0, [note]
    others = ", ".join(gpu.name for gpu in gpus[1:])
    notes = [f"this plan uses only {gpus[0].name}; {others} would be idle"] if others else []
    return gpus[0].name, gpus[0].free_bytes, notes


def loadable(cost: ModelCost, request: Request, heat: HeatCounts | None) -> Placement:
    """The placement; where it can't be loaded, that of the context that a load would shorten to."""
    from dotscli.engine.memory import context_size

    wanted = place(cost, request, heat)
    token = cost.kv_layer_nbytes(CTX_STEP, request.type_k, request.type_v) // CTX_STEP
    room = wanted.ram.total - wanted.ram.margin - wanted.ram.dense
    n_ctx = context_size(cost.n_ctx_train, token * len(cost.layers), max(0, room), SHORT_CTX)
    n_ctx, found = min(n_ctx, request.n_ctx) + 1, wanted
    while found.verdict is Verdict.TOO_SMALL and n_ctx > SHORTEST_CTX:
        n_ctx = max(SHORTEST_CTX, (n_ctx - 1) // CTX_STEP * CTX_STEP)
        found = place(cost, replace(request, n_ctx=n_ctx), heat)
    return wanted if found.verdict is Verdict.TOO_SMALL else found


def _ram(ram: int | None) -> int:
    if ram is not None:
        return ram
    from dotscli.engine.available import available_memory

    return available_memory().nbytes


def _bandwidths(terminal: Terminal, model: Path, flags: PlanFlags) -> tuple[int, int]:
    """Of main memory and of the model's disk: as given, else as measured, else 0."""
    known = kept(state_folder(terminal.environ))
    return flags.bandwidth or int(known.ram), flags.disk_bandwidth or int(known.disk_of(model))


def _kv_type(kind: str) -> str:
    from dotscli.engine.options import CACHE_TYPES

    if kind.lower() not in CACHE_TYPES:
        raise DotsError(
            f"unknown cache type {kind}",
            hint=f"one of: {' '.join(CACHE_TYPES)}",
            exit_status=ExitStatus.USAGE,
        )
    return kind.lower()


def _heat(
    terminal: Terminal, cost: ModelCost, model: Path | None, given: Path | None
) -> tuple[HeatCounts | None, list[str]]:
    """What is known of the use of experts: what was given, or what answers of this model have
    left; and a note if it is that.
    """
    from dotscli.hot.heat_store import file_of
    from dotscli.hot.kept_heat import KeptHeat

    place = (
        None
        if model is None or given is not None
        else file_of(model, heat_folder(terminal.environ))
    )
    kept = KeptHeat(cost, place, given)
    if kept.heat is None:
        return None, [kept.problem] if kept.problem else []
    notes = (
        []
        if given is not None
        else ["experts are ranked by their use in earlier answers; --heat FILE overrides that"]
    )
    return {layer: counts.tolist() for layer, counts in kept.heat.layers.items()}, notes
