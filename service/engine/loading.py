"""Checks of a model folder that need no torch, so that a bad one stops the service at once."""

import json
from pathlib import Path

from service.errors import StartupError

VARIABLE = "SAFELIGHT_MODEL"


def check_folder(model: str) -> None:
    """Raise `StartupError` unless `model` is a whole diffusers folder or may be a hub id (`owner/name`)."""
    folder = Path(model)
    if not folder.exists():
        if model.count("/") == 1 and not model.startswith((".", "/", "models/")):
            return
        raise StartupError(f"{VARIABLE}: there is no model folder {model!r}")
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"{VARIABLE}: {index} cannot be read as a diffusers model index ({error})") from error
    for name, kind in parts.items():
        if isinstance(kind, list) and kind and kind[0] is not None and not (folder / name).is_dir():
            raise StartupError(f"{VARIABLE}: {folder} lacks the folder {name!r} that its model index names")


def describe_failure(model: str, error: Exception) -> str:
    """One line for a model that does not load."""
    lines = str(error).strip().splitlines()
    return f"{VARIABLE}: {model!r} cannot be loaded: {lines[0] if lines else type(error).__name__}"
