"""What `test_child.py` has children do: to be useful, to hang, to grow, to die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.child_loop import serve


def main() -> None:
    serve(_answer, 256 * 1024**2, opens_files=True)


def locked_down() -> None:
    serve(_answer, 256 * 1024**2, opens_files=False)


def _answer(question: Any) -> Any:
    match question["do"]:
        case "echo":
            return question["value"]
        case "environment":
            return dict(os.environ)
        case "refuse":
            raise DotsError("no" * question.get("times", 1), "ask otherwise")
        case "sleep":
            time.sleep(question["seconds"])
        case "hang":  # one call of Python that nothing inside the interpreter can end
            return round(1, -30_000_000)
        case "grow":
            held = [b"x" * (1 << 20) for _ in range(question["mebibytes"])]
            time.sleep(question["seconds"])
            return len(held)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "complain":
            os.write(2, b"first\nthe last words\n")
            os._exit(3)
        case "flood":
            return "x" * question["nbytes"]
        case "print":
            os.write(1, b"not an answer")
        case "stumble":
            raise ValueError("what nobody\nhas foreseen")
        case "open":
            return len(Path(__file__).read_bytes())
    return None
