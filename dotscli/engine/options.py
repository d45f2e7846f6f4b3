"""What a user decides about loading and running a model, checked before llama.cpp hears of it.

Pure values: nothing here touches llama.cpp or the machine, except for counting its cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dotscli.engine.cores import usable_cores
from dotscli.engine.sampling import shown
from dotscli.errors import DotsError
from dotscli.models.gguf_type import BY_NAME, TensorType

# The types that llama.cpp's attention reads.
CACHE_TYPES: dict[str, TensorType] = {
    name: BY_NAME[name.upper()]
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
MAX_CTX = 1 << 20
MAX_BATCH = 1 << 14
MAX_OUTPUTS = 64  # rows of logits a batch may ask for: at 152,064 tokens each takes 0.6 MB
MIN_UBATCH = 512  # tokens computed at once, llama.cpp's default
UBATCHES = (4096, 2048, 1024)  # what is tried where experts come from the disk
MAX_THREADS = 512  # GGML_MAX_N_THREADS, beyond which ggml aborts


@dataclass(frozen=True)
class HotOptions:
    """How many routed experts get a copy on a device, and which.

    `nbytes` None: what is free on the device, less a margin. `device` empty: the GPU with the most
    free memory. `heat`: a heat file or importance matrix to begin with, instead of what earlier
    runs have counted. `folder`: where counts are kept from run to run, None for nowhere. `adapt`:
    exchange experts while answering. `guard`: compare a few tokens at the first load, and load
    without hot experts where they don't pay; with `nbytes` or `trace` that is only said. `trace`:
    a new file for the experts of every token, layer by layer (`heat_store.read_trace`).
    """

    nbytes: int | None = None
    device: str = ""
    heat: Path | None = None
    folder: Path | None = None
    adapt: bool = True
    guard: bool = True
    trace: Path | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody wants them, and not only if it happens to be possible."""
        given = (self.nbytes, self.heat, self.trace)
        return bool(self.device) or any(value is not None for value in given)


@dataclass(frozen=True)
class EngineOptions:
    """Named as the flags of llama.cpp are.

    `n_ctx` 0: sized from free memory. `n_threads` 0: physical cores; `n_threads_batch` 0: the
    same. `n_gpu_layers` None: all of them if there is a GPU. `n_cpu_moe`: the experts of the
    first so many layers stay on the CPU, `cpu_moe`: those of all layers. `override_tensor`:
    REGEX=BUFFER-TYPE. `rpc`: HOST:PORT of workers. `hot` None: llama.cpp's placement alone.
    `n_batch` 0: as `n_ubatch`. `n_ubatch`, tokens computed at once, 0: 512, and more where experts
    are read from the disk. `tier`: read experts when they are needed if they don't fit into
    memory. `ram_nbytes`: main memory that the model may take, None for what is free.

    Raises:
        DotsError: a value outside its range or a name that does not exist (exit status 2).
    """

    n_ctx: int = 0
    n_threads: int = 0
    n_threads_batch: int = 0
    n_batch: int = 0
    n_ubatch: int = 0
    n_gpu_layers: int | None = None
    n_cpu_moe: int = 0
    cpu_moe: bool = False
    override_tensor: tuple[str, ...] = ()
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    rpc: tuple[str, ...] = ()
    hot: HotOptions | None = None
    tier: bool = True
    ram_nbytes: int | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        _check_range("--ctx-size", self.n_ctx, 0, MAX_CTX)
        _check_range("--threads", self.n_threads, 0, MAX_THREADS)
        _check_range("--threads-batch", self.n_threads_batch, 0, MAX_THREADS)
        _check_range("--batch-size", self.n_batch, 0, MAX_BATCH)
        _check_range("--ubatch-size", self.n_ubatch, 0, MAX_BATCH)
        _check_range("--n-cpu-moe", self.n_cpu_moe, 0, 1 << 16)
        if self.n_gpu_layers is not None:
            _check_range("--n-gpu-layers", self.n_gpu_layers, 0, 1 << 16)
        _check_name("--cache-type-k", self.cache_type_k, CACHE_TYPES)
        _check_name("--cache-type-v", self.cache_type_v, CACHE_TYPES)
        _check_name("--flash-attn", self.flash_attn, FLASH_ATTN)
        if self.flash_attn == "off" and CACHE_TYPES[self.cache_type_v].quantized:
            raise DotsError(
                f"a V cache of type {self.cache_type_v} needs flash attention",
                hint="leave out --flash-attn off, or use --cache-type-v f16",
                exit_status=2,
            )

    def threads(self) -> tuple[int, int]:
        """Threads for decode and for prefill."""
        decode = self.n_threads or usable_cores()
        return decode, self.n_threads_batch or decode


def cache_bytes(name: str, elements: int) -> int:
    """Bytes that a row of `elements` takes in a cache of that type."""
    return CACHE_TYPES[name].row_nbytes(elements)


def _check_range(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DotsError(
            f"{flag} {shown(value)} is out of range", hint=f"give {low} to {high}", exit_status=2
        )


def _check_name(flag: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        hint = f"give one of {', '.join(known)}"
        raise DotsError(f"invalid {flag} {value!r}", hint=hint, exit_status=2)
