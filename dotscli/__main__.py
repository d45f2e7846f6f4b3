"""`python -m dotscli` is the command `dots`."""

from __future__ import annotations

from dotscli.cli import main

if __name__ == "__main__":
    main()
