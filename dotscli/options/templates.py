"""The options of `dots templates`, as one group."""

from __future__ import annotations

from dataclasses import dataclass

from dotscli.options.shared import Init, varied


@dataclass(frozen=True)
class TemplatesFlags:
    """What is done instead of showing them."""

    init: Init = varied(False, help="Write three samples, where there is none of their name.")
