"""One streaming pass from a safetensors checkpoint, or from another GGUF, to a GGUF file.

`quantize_checkpoint` is the one call; `plan_checkpoint` says what it would write, and `plan_steps`
how far it is with a budget's plan. Importing this package costs nothing: what does the work is
imported when it is called.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.quantize.request import DEFAULT_MAX_MEMORY, DEFAULT_TYPE, Budget, Request

if TYPE_CHECKING:
    from dotscli.quantize.fit.fit import Fit
    from dotscli.quantize.fit.measure import Measuring
    from dotscli.quantize.plan import Plan
    from dotscli.quantize.run import Event

__all__ = ["DEFAULT_TYPE", "plan_checkpoint", "plan_steps", "quantize_checkpoint"]


def quantize_checkpoint(
    folder: Path,
    out: Path,
    type: str = DEFAULT_TYPE,
    *,
    tensor_types: Sequence[str] = (),
    imatrix: Path | None = None,
    threads: int = 0,
    max_memory: int | None = None,
    force: bool = False,
    restart: bool = False,
    split_max_size: int | None = None,
    report: Path | None = None,
    blend: bool = True,
    budget: Budget | None = None,
) -> Iterator[Event]:
    """Quantize a checkpoint into a GGUF, or go on where an interrupted run stopped.

    Everything is decided and checked when the first event is asked for, before a byte is written.
    Closing the iterator, or any exception in it, keeps the finished tensors in out.part; the same
    call goes on with them, and a call with another input or recipe starts anew and says so.

    Args:
        folder: holds config.json, tokenizer.json and the safetensors; or a GGUF, or the first file
            of a split one.
        out: the GGUF; out.part and out.part.journal are used meanwhile.
        type: a preset of `dotscli.quantize.recipe.presets`, or a GGUF whose types are taken.
        tensor_types: overrides REGEX=TYPE, the first that matches wins.
        imatrix: importance matrix in llama.cpp's GGUF or .dat form.
        threads: 0 takes every core. max_memory: bytes, None is 4 GiB.
        force: replace an existing file.
        restart: throw away what an interrupted run has left.
        split_max_size: bytes; a larger output becomes several files, named after out as llama.cpp
            expects them.
        report: a JSON file for the relative error of every matrix, measured on the way.
        blend: weight the columns of experts that saw few tokens with their layer's statistics too;
            without it the importance matrix is used as llama-quantize uses it.
        budget: choose the type of every tensor so that the output has at most this; type is
            not looked at then, tensor_types are.

    Yields:
        With a budget Measuring and Fit of `dotscli.quantize.fit.decide`, then
        the events of `dotscli.quantize.convert`: Started, Resumed after an interruption, Progress,
        TensorDone, Finished.

    Raises:
        DotsError: whatever is wrong with the input, the options or the disk.
    """
    from dotscli.quantize.run import quantize

    return quantize(
        Request(
            source=folder,
            out=out,
            type=type,
            tensor_types=tuple(tensor_types),
            imatrix=imatrix,
            blend=blend,
            budget=budget,
            split_max_size=split_max_size,
            threads=threads,
            max_memory=DEFAULT_MAX_MEMORY if max_memory is None else max_memory,
            force=force,
            restart=restart,
            report=report,
        )
    )


def plan_checkpoint(
    folder: Path,
    type: str = DEFAULT_TYPE,
    *,
    tensor_types: Sequence[str] = (),
    imatrix: Path | None = None,
) -> Plan:
    """What `quantize_checkpoint` would write; config.json alone, or its folder, is enough.

    Raises:
        DotsError: whatever is wrong with the input or the options.
    """
    steps = plan_steps(folder, type, tensor_types=tensor_types, imatrix=imatrix)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            plan: Plan = end.value
            return plan


def plan_steps(
    folder: Path,
    type: str = DEFAULT_TYPE,
    *,
    tensor_types: Sequence[str] = (),
    imatrix: Path | None = None,
    budget: Budget | None = None,
    split_max_size: int | None = None,
    threads: int = 0,
    blend: bool = True,
) -> Generator[Measuring | Fit, None, Plan]:
    """The same, returned in the end; with a budget the weights must be there and are measured.

    Raises:
        DotsError: whatever is wrong with the input or the options.
    """
    from dotscli.quantize.run import plan_steps

    return plan_steps(
        Request(
            source=folder,
            type=type,
            tensor_types=tuple(tensor_types),
            imatrix=imatrix,
            blend=blend,
            budget=budget,
            split_max_size=split_max_size,
            threads=threads,
        )
    )
