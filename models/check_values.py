"""Whether the vectors of a dots1 GGUF are numbers: its norms, and the bias of its routers.

A NaN among them need not show in the logits: a router whose bias is none chooses experts that a
model runs with, and answers gibberish. They are a few megabytes, so a load looks at all of them;
`dots verify` looks at everything.
"""

from __future__ import annotations

import math

from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufFile, read_one

_MAX_NBYTES = 64 << 20  # of one vector: check_dots1 has seen that none is wider than 2^24


def check_vectors(gguf: GgufFile) -> None:
    """Refuse a model, checked by `check_dots1`, with a vector that isn't finite.

    Raises:
        DotsError: with the file and the tensor.
    """
    parts = (gguf,) if len(gguf.shards) == 1 else map(read_one, gguf.shards)
    for part in parts:
        try:
            with part.path.open("rb") as file:
                for tensor in part.tensors:
                    if len(tensor.shape) > 1 or tensor.nbytes > _MAX_NBYTES:
                        continue
                    file.seek(part.data_offset + tensor.offset)
                    values = memoryview(file.read(tensor.nbytes)).cast("f")
                    if not math.isfinite(sum(values)):  # in doubles, whose range floats don't leave
                        raise DotsError(
                            f"{part.path}: {tensor.name} holds a value that is not finite",
                            hint="the file is damaged: dots verify shows what else is; download or "
                            "quantize it again",
                        )
        except (OSError, TypeError) as error:  # TypeError: cut off in the middle of a float
            reason = getattr(error, "strerror", None) or "it was cut off"
            raise DotsError(f"{part.path} can't be read: {reason}") from None
