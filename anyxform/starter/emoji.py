"""Emoji: many drawings of one concept, named in many languages."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from anyxform.starter.archives import files
from anyxform.starter.download import ANNOTATIONS, MORE_STYLES, STYLES, Package, fetch
from anyxform.starter.draft import LANGUAGES, Draft, webp

_SKIN_TONES = {f"{code:x}" for code in range(0x1F3FB, 0x1F400)}


def emoji(cache: Path) -> Iterator[Draft]:
    """One draft a concept, skin tones left out: its name in every language, its drawing in every style that has one."""
    return _drafts("emoji", STYLES, cache)


def styles(cache: Path) -> Iterator[Draft]:
    """The same concepts in more styles, a dataset of its own: with it the starter is too large for a repository."""
    return _drafts("styles", MORE_STYLES, cache)


def _drafts(dataset: str, packages: Mapping[str, Package], cache: Path) -> Iterator[Draft]:
    names = _names(cache)
    styles = {style: _drawings(fetch(package, cache)) for style, package in packages.items()}
    for code, text in sorted(names.items()):
        if "en" not in text or _SKIN_TONES & set(code.split("-")):
            continue
        media = {}
        for style, (by_code, by_slug) in styles.items():
            svg = by_code.get(code) or (None if by_code else by_slug.get(_slug(text["en"])))
            if svg:
                media[f"{style}.webp"] = webp(_render(svg))
        if media:
            yield Draft(dataset, code, text, media, about="emoji")


def _names(cache: Path) -> dict[str, dict[str, str]]:
    names: dict[str, dict[str, str]] = {}
    for kind, package in ANNOTATIONS.items():
        wanted = {f"package/{kind}/{language}/annotations.json": language for language in LANGUAGES}
        for path, data in files(fetch(package, cache)):
            if path in wanted:
                for characters, entry in json.loads(data)[kind]["annotations"].items():
                    if entry.get("tts"):
                        names.setdefault(_code(characters), {})[wanted[path]] = entry["tts"][0]
    return names


def _code(characters: str) -> str:
    """Code points in hexadecimal, without the variation selector that some sets write and others do not."""
    return "-".join(f"{ord(character):x}" for character in characters if character != "\ufe0f")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _drawings(package: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A set's SVGs by code points and by slug of the icon's name."""
    content = {Path(path).name: data for path, data in files(package) if path.endswith(".json")}
    icons, codes = json.loads(content["icons.json"]), json.loads(content["chars.json"])
    svgs = {name: _svg(icon, icons) for name, icon in icons["icons"].items()}
    for alias, entry in icons.get("aliases", {}).items():
        if entry.keys() == {"parent"} and entry["parent"] in svgs:  # others turn or flip their parent
            svgs[alias] = svgs[entry["parent"]]
    by_code = {code.replace("-fe0f", ""): svgs[name] for code, name in codes.items() if name in svgs}
    return by_code, {_slug(name): svg for name, svg in svgs.items()}


def _svg(icon: dict[str, Any], defaults: dict[str, Any]) -> str:
    left, top, width, height = (
        icon.get(key, defaults.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def _render(svg: str) -> Image.Image:
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256))))
