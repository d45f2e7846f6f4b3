"""How the FP8 tensors of a checkpoint are scaled: what config.json says, and where the scales are.

Two layouts are read, as quantization_config names them: that of compressed-tensors
("float-quantized"), with a scale per tensor, row or block, and that of DeepSeek ("fp8" with
weight_block_size), with a scale per block. The blocks at the edges may be cut. Which tensors are
FP8 is what the shards say; the lists of modules left alone say it once more and are not read.
It reads no values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, read_object, shown
from dotscli.quantize.source.fp8 import VALUES, Grid
from dotscli.quantize.source.safetensors_header import ShardTensor

SCALE_SUFFIXES = ("_scale", "_scale_inv")
SCALE_DTYPES = ("F32", "BF16", "F16")
# Scales of activations: those belong to a way of computing, not to the weights.
ACTIVATION_SUFFIXES = (".input_scale", ".output_scale", ".k_scale", ".v_scale")
_HINT = "dots reads FP8 (compressed-tensors float-quantized, DeepSeek fp8), bf16, f16 and f32"
_MAX_BLOCK = 1 << 16


@dataclass(frozen=True)
class Scales:
    """The tensor of an FP8 tensor's scales, and which weights share one."""

    name: str
    tensor: ShardTensor
    grid: Grid


@dataclass(frozen=True)
class Fp8Layout:
    """What quantization_config says of the scales.

    Attributes:
        strategies: of "tensor", "channel" and "block", those that occur.
        block: the grid of "block".
    """

    strategies: frozenset[str]
    block: Grid | None = None

    def grid(self, shape: tuple[int, ...], scales: tuple[int, ...]) -> Grid | None:
        """Which weights of a matrix share a scale, given the shape of its scales; None if those
        are not what the config announces."""
        if len(shape) != 2 or 0 in shape:
            return None
        n_rows, n_columns = shape
        known = {"tensor": Grid(n_rows, n_columns), "channel": Grid(1, n_columns)}
        if self.block:
            known["block"] = self.block
        for strategy in sorted(self.strategies):
            grid = known[strategy]
            expected = grid.n_scales(shape)
            # One scale per tensor or row may come with fewer dimensions than the matrix has.
            flat = expected[1] == 1 and scales in (expected[:1], () if expected[0] == 1 else None)
            if scales == expected or flat:
                return grid
        return None


def fp8_layout(folder: Path) -> Fp8Layout | None:
    """How the FP8 weights of a checkpoint are scaled; None if its config.json says nothing.

    Raises:
        DotsError: the checkpoint is quantized in another way.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = Values(read_object(path, max_nbytes=1 << 24), str(path))
    if not config.has("quantization_config"):
        return None
    values = config.section("quantization_config")
    method = values.text("quant_method")
    if method == "fp8":
        if not values.has("weight_block_size"):
            return Fp8Layout(frozenset(("tensor", "channel")))
        return Fp8Layout(frozenset(("block",)), _block(values, "weight_block_size"))
    if method == "compressed-tensors" and values.text("format") == "float-quantized":
        return _compressed_tensors(values)
    raise DotsError(
        f"{path}: the checkpoint is already quantized: quant_method is {shown(method)}, format "
        f"{shown(values.values.get('format'))}",
        hint=_HINT,
    )


def _compressed_tensors(values: Values) -> Fp8Layout:
    groups = values.section("config_groups")
    if not groups.values:
        raise values.wrong("config_groups", "at least one group")
    strategies, blocks = set(), set()
    for name in groups.values:
        weights = groups.section(name).section("weights")
        if weights.text("type") != "float" or weights.integer("num_bits", 1, 64) != 8:
            raise DotsError(f"{weights.origin}: the weights are not 8-bit floats", hint=_HINT)
        strategy = weights.text("strategy")
        if strategy not in ("tensor", "channel", "block"):
            raise weights.wrong("strategy", '"tensor", "channel" or "block"')
        strategies.add(strategy)
        if strategy == "block":
            blocks.add(_block(weights, "block_structure"))
    if len(blocks) > 1:
        raise DotsError(f"{groups.origin}: the groups have blocks of different sizes")
    return Fp8Layout(frozenset(strategies), next(iter(blocks), None))


def _block(values: Values, key: str) -> Grid:
    sizes = values.array(key)
    good = [s for s in sizes if type(s) is int and 1 <= s <= _MAX_BLOCK]
    if len(sizes) != 2 or good != sizes:
        raise values.wrong(key, "rows and columns of a block, such as [128, 128]")
    return Grid(good[0], good[1])


def paired(
    folder: Path, tensors: dict[str, ShardTensor]
) -> tuple[dict[str, ShardTensor], dict[str, Scales]]:
    """The tensors, and apart from them the scales that belong to FP8 tensors.

    Raises:
        DotsError: an FP8 tensor without scales, or with some of another shape or dtype than
            config.json says.
    """
    layout = fp8_layout(folder)
    if layout is None:
        return tensors, {}
    scales: dict[str, Scales] = {}
    for name, tensor in tensors.items():
        if tensor.entry.dtype not in VALUES:
            continue
        own = next((name + s for s in SCALE_SUFFIXES if name + s in tensors), None)
        if own is None:
            raise DotsError(
                f"{tensor.path}: {name} is {tensor.entry.dtype} and has no scales beside it",
                hint=f"expected {name}{SCALE_SUFFIXES[0]}",
            )
        found = tensors[own]
        grid = layout.grid(tensor.entry.shape, found.entry.shape)
        if grid is None or found.entry.dtype not in SCALE_DTYPES:
            raise DotsError(
                f"{found.path}: {own} is {list(found.entry.shape)} in {found.entry.dtype}, not "
                f"scales for {list(tensor.entry.shape)} as quantization_config describes them"
            )
        scales[name] = Scales(own, found, grid)
    others = {scale.name for scale in scales.values()}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in others and not name.endswith(ACTIVATION_SUFFIXES)
    }, scales
