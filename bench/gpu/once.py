"""The logits of one placement in a process of its own, kept in a file. Used by check.py.

python -m bench.gpu.once '{"model": "m.gguf", "tokens": [...], "logits": "out.npy", ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from bench.gpu.task import Task
from dotscli.engine import Engine


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    notes: list[str] = []
    with Engine.load(Path(task.model), task.options(), on_log=notes.append) as engine:
        np.save(str(task.logits), engine.logits(task.tokens))
    print(json.dumps({"notes": notes}))


if __name__ == "__main__":
    main()
