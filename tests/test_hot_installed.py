"""Where dots was installed with a compiler at hand, the hot-expert backend came with it.

The other tests of the backend are skipped without the library: this one says that it is missing.
"""

from __future__ import annotations

import os
import sys

import pytest

from dotscli.hot import library
from tests.hot_devices import compiler


@pytest.mark.skipif(
    sys.platform == "win32" or not compiler() or "DOTSCLI_PURE" in os.environ,
    reason="installed without native libraries, and meant to be",
)
def test_the_library_was_built() -> None:
    assert library.library_path(), "run: pip install -e ."
