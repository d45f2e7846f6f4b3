"""Which test modules Windows can't import: those that need a module of Unix, directly or not.

Read from the sources, so that a new module is on the list by what it imports. It runs no test.
"""

from __future__ import annotations

import ast
from pathlib import Path

MODULES = frozenset({"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"})


def unix_only(folder: Path) -> list[str]:
    """Paths of the test modules below folder, relative to it, that import one of MODULES.

    Imports within functions count as none: they are reached only by the tests that need them.
    """
    names = {path: f"{folder.name}." + ".".join(path.relative_to(folder).with_suffix("").parts)
             for path in sorted(folder.rglob("*.py"))}  # fmt: skip
    imported = {name: _imports(path) for path, name in names.items()}
    found = {name for name, those in imported.items() if those & MODULES}
    while more := {name for name, those in imported.items() if those & found} - found:
        found |= more
    return [
        path.relative_to(folder).as_posix()
        for path, name in names.items()
        if name in found and path.name.startswith("test_")
    ]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            found |= {statement.module}
            found |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return found
