"""Two examples for each command, which its help ends with; the tests type all of them.

`dots.llm1.inst` is the folder of the published checkpoint, `dots.gguf` what was made of it.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quantize": (
        "dots quantize dots.llm1.inst --dry-run",
        "dots quantize dots.llm1.inst -o dots.gguf",
    ),
    "verify": (
        "dots verify dots.gguf",
        "dots verify dots.gguf --against dots.llm1.inst --tensor output.weight",
    ),
    "calibrate": (
        "dots calibrate dots.gguf -f text.txt --dry-run",
        "dots calibrate dots.gguf -f text.txt -o dots.imatrix.gguf",
    ),
    "prompt": (
        'dots prompt "What is dots?"',
        "dots prompt -m dots.gguf -f text.txt --temp 0 -n 50 'What is this about?'",
    ),
    "chat": (
        "dots chat",
        'dots chat -m dots.gguf -s "Be brief." --session tour "What is dots?"',
    ),
    "sessions": (
        "dots sessions",
        "dots sessions show tour",
    ),
    "templates": (
        "dots templates --init",
        "dots templates review",
    ),
    "plan": (
        "dots plan dots.llm1.inst --vram 24G --ram 64G",
        "dots plan dots.gguf -c 1024 -ctk q8_0 -ctv q8_0",
    ),
    "inspect": (
        "dots inspect dots.gguf",
        "dots inspect dots.imatrix.gguf --experts --plot experts.svg",
    ),
    "worker": (
        "dots worker",
        "dots worker --port 0 --threads 2 --device CPU",
    ),
    "doctor": (
        "dots doctor",
        "dots doctor --json",
    ),
    "paths": (
        "dots paths",
        "dots paths --json",
    ),
    "config": (
        "dots config --init",
        "dots config --json",
    ),
}
