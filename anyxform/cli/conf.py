"""Configs: hydra composes them, nothing else of the package sees hydra or OmegaConf."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anyxform.field import did_you_mean


def conf_folder() -> Path:
    """The project's configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ValueError(f"the configs that belong to {package} are missing: install anyxform again")


def compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config `name` with hydra overrides, plain and resolved.

    ``--config-dir DIR`` among the overrides, or ANYXFORM_CONF, is a folder of the user's own configs, searched first.
    ValueError: an override that fits nothing, with the nearest word that would.
    """
    overrides, own = _split_config_dir(overrides)
    if any(word in ("-h", "--help") for word in overrides):
        raise ValueError(f"overrides are written key=value; the keys of this command are in {conf_folder() / (name + '.yaml')}")
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"{override!r} is not an override: write key=value")
    if own:
        overrides = [f"hydra.searchpath=[file://{own}]", *overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            composed = OmegaConf.to_container(hydra_compose(name, overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, name, own)) from error
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _split_config_dir(overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    rest, folder = list(overrides), os.environ.get("ANYXFORM_CONF")
    if "--config-dir" in rest:
        place = rest.index("--config-dir")
        folder = rest[place + 1] if place + 1 < len(rest) else ""
        del rest[place : place + 2]
    if folder is None:
        return rest, None
    if not Path(folder).is_dir():
        raise ValueError(f"--config-dir: there is no folder {folder!r}")
    return rest, Path(folder).resolve()


def _explain(error: Exception, name: str, own: Path | None) -> str:
    """Hydra's message in one line, with the nearest word that exists."""
    message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if match := re.search(r"Could not override '([^']+)'", message):
        return f"no config key is called {match[1]!r}: {did_you_mean(match[1], list(_keys(name)))}"
    if match := re.search(r"Could not find '([^']+)'", message):
        group, _, option = match[1].rpartition("/")
        options = _options(group, own)
        return f"there is no config {match[1]!r}: {did_you_mean(option, options)}"
    if "mandatory" in message.lower() or "MissingMandatoryValue" in type(error).__name__ or "You must specify" in message:
        return f"{lines[0]}"
    return "; ".join(lines[:2])


def _options(group: str, own: Path | None) -> list[str]:
    folders = [folder / group for folder in (conf_folder(), own) if folder]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def _keys(name: str) -> Iterator[str]:
    """The dotted keys that a config can be overridden by."""
    folder = conf_folder()
    yield from _dotted(OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"), resolve=False), "")
    for group in (path for path in folder.iterdir() if path.is_dir()):
        yield group.name
        for option in group.glob("*.yaml"):
            yield from _dotted(OmegaConf.to_container(OmegaConf.load(option), resolve=False), f"{group.name}.")


def _dotted(tree: Any, prefix: str) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")
