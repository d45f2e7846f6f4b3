"""Where things lie on this machine: settings, models, heat, history, caches.

XDG's variables first, then what the system uses. It creates nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def config_path(environ: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/dots/config.toml, or the system's place for it."""
    given = environ.get("XDG_CONFIG_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "dots" / "config.toml"
    if sys.platform == "win32":
        return Path(environ.get("APPDATA", Path.home())) / "dots" / "config.toml"
    return Path.home() / ".config" / "dots" / "config.toml"


def templates_folder(environ: Mapping[str, str]) -> Path:
    """Where prompt templates are looked up by name: templates/ beside config.toml."""
    return config_path(environ).parent / "templates"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where made things are kept: $XDG_CACHE_HOME/dots, or what the system uses for that."""
    return _folder(environ, "XDG_CACHE_HOME", "user_cache_dir")


def models_folder(environ: Mapping[str, str]) -> Path:
    """Where models are looked up by name: $DOTS_MODELS, or models/ in the data folder."""
    if environ.get("DOTS_MODELS"):
        return Path(environ["DOTS_MODELS"]).expanduser()
    return _folder(environ, "XDG_DATA_HOME", "user_data_dir") / "models"


def heat_folder(environ: Mapping[str, str]) -> Path:
    """Where it is kept how much each expert of a model is used: heat/ in the data folder."""
    return _folder(environ, "XDG_DATA_HOME", "user_data_dir") / "heat"


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where the input history is kept: $XDG_STATE_HOME/dots."""
    return _folder(environ, "XDG_STATE_HOME", "user_state_dir")


def sessions_folder(environ: Mapping[str, str]) -> Path:
    """Where conversations are saved: sessions/ beside the input history."""
    return state_folder(environ) / "sessions"


def states_folder(environ: Mapping[str, str]) -> Path:
    """Where it is kept what contexts hold: states/ beside the conversations."""
    return state_folder(environ) / "states"


def _folder(environ: Mapping[str, str], variable: str, function: str) -> Path:
    given = environ.get(variable, "")
    if Path(given).is_absolute():  # XDG's rule: a relative path counts as none
        return Path(given) / "dots"
    import platformdirs

    return Path(getattr(platformdirs, function)("dots", appauthor=False))


def all_paths(environ: Mapping[str, str]) -> dict[str, Path]:
    """Every place that dots reads or writes by itself, by what it is for."""
    return {
        "config": config_path(environ),
        "templates": templates_folder(environ),
        "models": models_folder(environ),
        "cache": cache_folder(environ),
        "heat": heat_folder(environ),
        "history": state_folder(environ) / "history",
        "sessions": sessions_folder(environ),
        "contexts": states_folder(environ),
    }
