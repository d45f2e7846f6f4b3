"""Where dots was installed with a compiler at hand, the hot-expert backend came with it.

The other tests of the backend are skipped without the library: the first says that it is missing.
"""

from __future__ import annotations

import os
import sys

import pytest

pytest.importorskip("llama_cpp")

from dotscli.hot.backend import library
from tests.hot_devices import compiler


@pytest.mark.skipif(
    sys.platform == "win32" or not compiler() or "DOTSCLI_PURE" in os.environ,
    reason="installed without native libraries, and meant to be",
)
def test_the_library_was_built() -> None:
    assert library.library_path(), "run: pip install -e ."


def test_a_library_of_another_version_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any library without our functions will do."""
    monkeypatch.setattr(library, "library_path", library.llama_path)
    found, reason = library.start.__wrapped__()
    assert found is None
    assert "another version" in reason
