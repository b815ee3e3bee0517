"""The pictures and captions: flat graphics of things, each on one of the palette's solid colours.

Graphics come from the npm package ``@twemoji/svg`` (Twemoji, CC-BY 4.0), names from ``emoji-datasource`` (MIT).
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PALETTE: dict[str, tuple[int, int, int]] = {
    name: (rgb[0], rgb[1], rgb[2])
    for name, rgb in json.loads(Path(__file__).with_name("palette.json").read_text(encoding="utf-8")).items()
}
COLOURS = tuple(PALETTE)
PACKAGES = {"@twemoji/svg": "15.0.0", "emoji-datasource": "16.0.0"}
CATEGORIES = frozenset(
    {"Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
)
LEFT_OUT = frozenset({"time", "alphanum"})  # clock faces and lettered signs: near-duplicates of one another
PICTURE_SIZE = 128
ART_SIZE = 96
CAPTIONS = ("{article} {name} on a {colour} background", "{name} on {colour}", "{name}, {colour} background")


@dataclass(frozen=True)
class Thing:
    """One drawable thing; ``names[0]`` is the one that samples and the evaluation ask for."""

    names: tuple[str, ...]
    category: str


@dataclass(frozen=True)
class Art:
    """All things and their graphics: ``rgba`` is uint8 [n, 96, 96, 4], straight alpha."""

    things: tuple[Thing, ...]
    rgba: torch.Tensor

    def __len__(self) -> int:
        return len(self.things)


def palette_tensor() -> torch.Tensor:
    """The palette as float32 [12, 3] in 0..255, in the order of ``COLOURS``."""
    return torch.tensor(list(PALETTE.values()), dtype=torch.float32)


def load_art(work: Path, npm: Path | None = None) -> Art:
    """The data stage: read the rendered graphics from ``work``, building them on the first call.

    ``npm`` may name a folder that already holds the packed tarballs; otherwise npm fetches them once.
    """
    if not (work / "art.npz").exists():
        build(work, npm)
    listed = json.loads((work / "things.json").read_text(encoding="utf-8"))
    things = tuple(Thing(tuple(entry["names"]), entry["category"]) for entry in listed)
    return Art(things, torch.from_numpy(np.load(work / "art.npz")["rgba"]))


def build(work: Path, npm: Path | None) -> None:
    """Render every kept thing at 96 x 96 and write ``things.json`` and ``art.npz`` into ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    svg_folder = unpacked("@twemoji/svg", work, npm)
    emoji_folder = unpacked("emoji-datasource", work, npm)
    entries = json.loads((emoji_folder / "emoji.json").read_text(encoding="utf-8"))
    things: list[dict[str, object]] = []
    pictures: list[np.ndarray[Any, Any]] = []
    for entry in sorted(entries, key=lambda e: int(e["sort_order"])):
        svg = svg_of(entry, svg_folder)
        if entry["category"] in CATEGORIES and entry["subcategory"] not in LEFT_OUT and svg is not None:
            things.append({"names": names_of(entry), "category": entry["category"]})
            pictures.append(render(svg))
    (work / "things.json").write_text(json.dumps(things), encoding="utf-8")
    partial = work / "art.partial.npz"
    np.savez_compressed(partial, rgba=np.stack(pictures))
    partial.replace(work / "art.npz")


def unpacked(package: str, work: Path, npm: Path | None) -> Path:
    """The folder of ``package``'s files, unpacked from ``npm pack``'s tarball (fetched when ``npm`` holds none)."""
    folder = work / "npm" / package.strip("@").replace("/", "-")
    if not (folder / "package.json").exists():
        tarball = f"{folder.name}-{PACKAGES[package]}.tgz"
        source = (npm or work / "npm") / tarball
        if not source.exists():
            source.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "pack", "--silent", f"{package}@{PACKAGES[package]}"], cwd=source.parent, check=True)
        with tarfile.open(source) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith((".svg", "emoji.json", "package.json"))]
            archive.extractall(work / "npm" / "unpacking", members=members, filter="data")
        (work / "npm" / "unpacking" / "package").replace(folder)
    return folder


def names_of(entry: dict[str, Any]) -> list[str]:
    """Lower-case names of an emoji-datasource entry, the Unicode name first, without repeats."""
    short = [name.replace("_", " ").replace("-", " ") for name in entry["short_names"]]
    return list(dict.fromkeys([entry["name"].lower(), *short]))


def svg_of(entry: dict[str, Any], folder: Path) -> Path | None:
    """The entry's graphic, or None when the graphics package has none under any of its code points."""
    plain = (entry["non_qualified"] or entry["unified"]).lower()
    candidates = (plain, entry["unified"].lower(), plain.replace("-fe0f", ""))
    return next((path for code in candidates if (path := folder / f"{code}.svg").exists()), None)


def render(svg: Path) -> np.ndarray[Any, Any]:
    """An SVG file as uint8 [96, 96, 4]."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=ART_SIZE, height=ART_SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def composite(rgba: torch.Tensor, colours: torch.Tensor, left: int = 16, top: int = 16) -> torch.Tensor:
    """Graphics uint8 [n, 96, 96, 4] on solid colours [n, 3] (0..255) -> float32 [n, 3, 128, 128] in -1..1."""
    art = rgba.float().permute(0, 3, 1, 2)
    alpha = art[:, 3:] / 255
    out = colours[:, :, None, None].expand(-1, -1, PICTURE_SIZE, PICTURE_SIZE).clone()
    window = out[:, :, top : top + ART_SIZE, left : left + ART_SIZE]
    window.copy_(art[:, :3] * alpha + window * (1 - alpha))
    return out / 127.5 - 1


def prompt(name: str, colour: str) -> str:
    """The natural prompt, as samples and the evaluation ask: "a red apple on a blue background"."""
    return CAPTIONS[0].format(article=article(name), name=name, colour=colour)


def article(name: str) -> str:
    """The indefinite article by the first letter, which is right for nearly every name here."""
    return "an" if name[0] in "aeiou" else "a"


def training_caption(thing: Thing, colour: str, rng: random.Random) -> str:
    """A caption to learn from: one in ten is empty (for guidance), one in twenty names no colour."""
    kind = rng.random()
    if kind < 0.10:
        return ""
    name = thing.names[0] if rng.random() < 0.5 else rng.choice(thing.names)
    if kind < 0.15:
        return name
    if kind < 0.70:
        return prompt(name, colour)
    return rng.choice(CAPTIONS[1:]).format(article=article(name), name=name, colour=colour)
