"""The entry point of the command `dots`, also as `python -m dotscli`.

It imports the command inside a `try`, so that Ctrl-C in the first fraction of a second, while
modules are still being read, ends as it does later: without a traceback.
"""

from __future__ import annotations

from typing import NoReturn

from dotscli.errors import ExitStatus


def main() -> NoReturn:
    """Run the command; does not return."""
    try:
        from dotscli.cli.app import main as run
    except KeyboardInterrupt:
        raise SystemExit(int(ExitStatus.INTERRUPTED)) from None
    run()


if __name__ == "__main__":
    main()
