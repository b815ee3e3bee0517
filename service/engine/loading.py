"""Checks of a model folder that need no torch, so that a bad one stops the service at once."""

import hashlib
import json
from pathlib import Path

from service.errors import StartupError

VARIABLE = "SAFELIGHT_MODEL"
HASHED_BYTES = 1 << 20


def locate(model: str) -> str:
    """`model` itself, or, when it is not in the working directory, the folder of that name in the project."""
    beside = Path(__file__).parents[2] / model
    return str(beside) if not Path(model).exists() and beside.is_dir() else model


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
    if not isinstance(parts, dict):
        raise StartupError(f"{VARIABLE}: {index} is no diffusers model index: it must hold an object")
    for name, kind in parts.items():
        if isinstance(kind, list) and kind and kind[0] is not None and not (folder / name).is_dir():
            raise StartupError(f"{VARIABLE}: {folder} lacks the folder {name!r} that its model index names")
        if name.startswith("tokenizer") and (folder / name).is_dir() and not _has_vocabulary(folder / name):
            raise StartupError(f"{VARIABLE}: {folder / name} holds no tokenizer")


def _has_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer's folder holds one; the libraries would make an empty one without a word."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt"))


def describe_failure(model: str, error: Exception) -> str:
    """One line for a model that does not load."""
    lines = str(error).strip().splitlines()
    return f"{VARIABLE}: {model!r} cannot be loaded: {lines[0] if lines else type(error).__name__}"


def revision(model: str) -> str:
    """A short hash that changes with the model's files: names, sizes, first and last MiB of each."""
    folder = Path(model)
    digest = hashlib.sha256(model.encode() if not folder.is_dir() else b"")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix not in {".json", ".safetensors", ".txt"} or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]
