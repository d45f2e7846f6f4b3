"""Which test modules are left out on Windows: by what they import, and by nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.unix_only import unix_only


def test_a_module_counts_that_imports_one_of_unix_itself_or_through_another(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    (folder / "fuzz").mkdir(parents=True)
    sources = {
        "kit.py": "import os, pty\n",
        "other_kit.py": "from tests.kit import run\n",
        "test_direct.py": "from termios import ECHO\n",
        "test_by_name.py": "from tests import kit\n",
        "test_far.py": "from tests.other_kit import run\n",
        "fuzz/test_deep.py": "import tests.kit\n",
        "test_free.py": "import os\nfrom tests import tiny\n",
        "test_inside.py": "def test() -> None:\n    import fcntl\n",
    }
    for name, source in sources.items():
        (folder / name).write_text(source)
    assert unix_only(folder) == [
        "fuzz/test_deep.py", "test_by_name.py", "test_direct.py", "test_far.py",
    ]  # fmt: skip


def test_tests_at_a_terminal_are_left_out_and_those_of_the_codec_are_not() -> None:
    found = unix_only(Path(__file__).parent)
    assert "test_chat.py" in found
    assert "test_codec.py" not in found
