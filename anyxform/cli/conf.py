"""Configs: hydra composes them, nothing else of the package sees hydra or OmegaConf."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from anyxform.cli.arguments import Parser
from anyxform.field import did_you_mean

REFUSED = {"train.fp16": "fp16 is slow on CPUs, and wants its losses scaled everywhere: use train.bf16=true"}
"""Keys that other trainers have, and why there are none here."""


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
    ``--help`` prints the config and leaves. ValueError: an override that fits nothing, with the nearest one that would.
    """
    overrides, own = _split_config_dir(name, overrides)
    if "-h" in overrides or "--help" in overrides:
        print(usage(name, overrides, own))
        raise SystemExit(0)
    for override in overrides:
        if override.startswith("-") or ("=" not in override and not override.startswith("~")):
            raise ValueError(f"{override!r} is not an override: write key=value")
    try:
        composed = OmegaConf.to_container(_compose(name, overrides, own), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(_explain(error, name, overrides, own)) from error
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def no_such_key(key: str, known: Sequence[str]) -> str:
    """What is said of a key that no config has: why, or the nearest of those that it could have been."""
    if key in REFUSED:
        return f"there is no {key}: {REFUSED[key]}"
    return f"no config key is called {key!r}: {did_you_mean(key, known)}"


def shipped(name: str) -> dict[str, Any]:
    """A config of the package as it is written."""
    return dict(yaml.safe_load((conf_folder() / f"{name}.yaml").read_text(encoding="utf-8")))


def offer(group: str, name: str, tree: Mapping[str, Any]) -> None:
    """Let ``group=name`` be chosen, though no folder has such a file."""
    ConfigStore.instance().store(name=name, group=group, node=OmegaConf.create(dict(tree)))


def usage(name: str, overrides: Sequence[str] = (), own: Path | None = None) -> str:
    """The config `name` as it is written, comments and all, then the options and the choice of each group."""
    file = _find(f"{name}.yaml", own)
    assert file is not None
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    parts = [file.read_text(encoding="utf-8").strip()]
    for key, default in _groups(file):
        group, _, package = key.partition("@")
        chosen = given.get(key, default)
        parts.append(f"# {key}={'|'.join(_options(group, own))}")
        if option := _find(f"{group}/{chosen}.yaml", own):
            text = option.read_text(encoding="utf-8").strip()
            parts[-1] += f"\n# {chosen}:\n{package or group}:\n{indent(text, '  ')}"
    return "\n\n".join(parts)


class _OwnFolder(SearchPathPlugin):
    """Puts the user's folder before ours: the key hydra.searchpath would put it behind."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("own", f"file://{self.folder}", anchor="main")


def _compose(name: str, overrides: Sequence[str], own: Path | None) -> DictConfig:
    GlobalHydra.instance().clear()
    _OwnFolder.folder = own
    Plugins.instance().register(_OwnFolder)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra_compose(name, overrides=list(overrides))


def _folders(own: Path | None) -> list[Path]:
    """Where configs are looked for, the user's own folder first."""
    return [folder for folder in (own, conf_folder()) if folder]


def _find(path: str, own: Path | None) -> Path | None:
    return next((folder / path for folder in _folders(own) if (folder / path).is_file()), None)


def _split_config_dir(name: str, overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    parser = Parser(prog=f"anyxform {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", default=os.environ.get("ANYXFORM_CONF"))
    options, rest = parser.parse_known_args(overrides)
    folder = options.config_dir
    if folder is None:
        return rest, None
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"--config-dir: there is no folder {folder!r}")
    return rest, Path(folder).resolve()


def _explain(error: Exception, name: str, overrides: Sequence[str], own: Path | None) -> str:
    """Hydra's message in one line, with the nearest word that exists."""
    message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if isinstance(error, YAMLError):
        return f"a config is no YAML: {' '.join(lines)}"
    if match := re.search(r"Could not (?:override|delete)(?: from config)?[^']*'([^']+)'", message):
        keys = list(dict.fromkeys(_keys(name, overrides, match[1], own)))
        if match[1] in keys:
            return f"{match[1]} is given entries that it has not: add each, as +{match[1]}.NAME.KEY=VALUE"
        near = keys if get_close_matches(match[1], keys, n=1) else [key for key in keys if "." not in key]
        return no_such_key(match[1], near)
    if match := re.search(r"Could not find '([^']+)'", message):
        group, _, option = match[1].rpartition("/")
        return f"there is no config {match[1]!r}: {did_you_mean(option, _options(group, own))}"
    if match := re.search(r"You must specify '([^']+)'", message):
        return f"{match[1]}= must be given: {', '.join(_options(match[1].partition('@')[0], own))}"
    return "; ".join(lines[:2])


def _options(group: str, own: Path | None) -> list[str]:
    return sorted({path.stem for folder in _folders(own) for path in (folder / group).glob("*.yaml")})


def _groups(file: Path) -> Iterator[tuple[str, str | None]]:
    """The groups of a config's defaults, ``model`` or ``modality@modality.text``, and the option that each has."""
    config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for entry in config["defaults"]:
        if isinstance(entry, dict):
            yield from entry.items()


def _keys(name: str, overrides: Sequence[str], wrong: str, own: Path | None) -> Iterator[str]:
    """What could be overridden instead of what is wrong: groups, and the dotted keys of the config without it."""
    file = _find(f"{name}.yaml", own)
    assert file is not None
    yield from (group for group, _ in _groups(file))
    rest = [override for override in overrides if override.lstrip("+~").partition("=")[0] != wrong]
    try:
        composed: Any = _compose(name, rest, own)
    except (HydraException, OmegaConfBaseException):  # there is more than one mistake
        composed = OmegaConf.load(file)
        del composed["defaults"]
    yield from _dotted(OmegaConf.to_container(composed, resolve=False), "")


def _dotted(tree: Any, prefix: str) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")
