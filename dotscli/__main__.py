"""The entry point of the command `dots`, also as `python -m dotscli`.

It imports the command inside a `try`, so that Ctrl-C in the first fraction of a second, while
modules are still being read, ends as it does later: without a traceback.
"""

from __future__ import annotations

import os
from typing import NoReturn

from dotscli.errors import EXHAUSTED_HINT, ExitStatus, is_exhausted


def main() -> NoReturn:
    """Run the command; does not return."""
    # Nothing here multiplies matrices through numpy, and BLAS would start a thread for every core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        if "_DOTS_COMPLETE" in os.environ:
            from dotscli.cli.completion import main as complete

            complete()
        from dotscli.cli.app import main as run
    except KeyboardInterrupt:
        raise SystemExit(int(ExitStatus.INTERRUPTED)) from None
    except (MemoryError, ImportError) as error:
        if not is_exhausted(error):
            raise
        raise SystemExit(f"error: there is not enough memory\nhint: {EXHAUSTED_HINT}") from None
    run()


if __name__ == "__main__":
    main()
