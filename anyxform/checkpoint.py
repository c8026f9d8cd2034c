"""Checkpoints and fitted tokenizers on disk: data only, never code.

    tokenizer folder/      config.json  state.safetensors
    checkpoint folder/     config.json  model.safetensors  modalities.safetensors  manifest.json

Tensors are safetensors, everything else JSON; nothing is unpickled, and classes are only found among the installed
plug-ins. Folders appear whole or not at all, and the manifest, written last, has the digest of every file. What
resuming needs beside these: `anyxform.resume`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyxform.modality import Modality, registry
from anyxform.model import Transformer
from anyxform.sharding import fill, whole

FORMAT = 1
MANIFEST = "manifest.json"
Contents = dict[str, Any]
"""Files by name: tensors by name for one that ends with .safetensors, plain values for one that ends with .json."""


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; it takes that name, in one step, once all of it is on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if folder.exists():  # a rename cannot replace a folder that holds something
            folder.rename(old)
        temporary.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def tidy(parent: Path) -> None:
    """Remove what a process that was killed while it wrote left in this folder, and put back what it had moved away."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name[1:].rsplit(".", 2)[0]
        if not folder.exists():
            old.rename(folder)
    for left in [*parent.glob(".*.tmp"), *parent.glob(".*.old")]:
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """A JSON file's value; a ValueError says if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint or tokenizer is not whole") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take another checkpoint, or copy it again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors; a ValueError says if it is missing or broken."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint or tokenizer is not whole") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take another checkpoint, or copy it again") from error


def save_modality(modality: Modality, folder: str | Path) -> None:
    """Write a modality and its fitted tokenizer."""
    with atomic_folder(Path(folder)) as temporary:
        write_json(
            temporary / "config.json", {"format": FORMAT, "modality": modality.name, "config": modality.config()}
        )
        save_file(copied(modality.state()), temporary / "state.safetensors")


def load_modality(folder: str | Path, **changes: Any) -> Modality:
    """Read what `save_modality` wrote; `changes` are arguments of the modality to be other than when it was fitted."""
    folder = Path(folder)
    saved = read_json(folder / "config.json")
    if not isinstance(saved, dict) or "modality" not in saved or "config" not in saved:
        raise ValueError(f"{folder} holds no tokenizer: give a folder that anyxform tokenizer wrote")
    changed = {key: value for key, value in changes.items() if saved["config"].get(key) != value}
    state = read_tensors(folder / "state.safetensors")
    return _build(folder, saved["modality"], {**saved["config"], **changed}, state, changed)


def _build(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    changed: Mapping[str, Any] | None = None,
) -> Modality:
    known = registry()
    if name not in known:
        raise ValueError(f"{folder} needs the modality {name!r}, which is not installed: see anyxform modalities")
    try:
        modality = known[name](**config)
        modality.load_state(state)
    except (TypeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        hint = f"it was fitted without {dict(changed)}" if changed else "another version wrote it"
        raise ValueError(f"{folder} does not fit the modality {name!r}: {hint} ({reason})") from error
    return modality


def contents(
    model: Transformer,
    modalities: Mapping[str, Modality],
    *,
    weights: Mapping[str, Tensor] | None = None,
    directions: list[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    keep: bool = True,
) -> Contents:
    """What inference needs, copied: `weights` (their average, say) or the model's own, and the modalities.

    `directions` are those trained on; `facts` say how (plain values, for a model card). `dtype`: of the floating-point
    tensors; None leaves them as they are. `keep`: see `copied`.
    """
    config = {
        "format": FORMAT,
        "model": model.config(),
        "conditions": list(model.condition_ids),
        "modalities": {name: modality.config() for name, modality in modalities.items()},
        "directions": list(directions or ()),
        "facts": dict(facts or {}),
    }
    own = model_tensors(model)
    states = {f"{name}.{key}": tensor for name, it in modalities.items() for key, tensor in it.state().items()}
    return {
        "config.json": config,
        "model.safetensors": copied({name: (weights or own)[name] for name in own}, dtype, keep),
        "modalities.safetensors": copied(states, dtype, keep),
    }


def copied(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, keep: bool = True) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, dense, whole, none sharing memory with another or with these.

    Without `keep` there are none: so a process gives the parts that it holds to the one that writes.
    """
    found = {}
    for name, tensor in tensors.items():
        all_of_it = whole(tensor.detach())
        if keep:
            to = dtype if tensor.is_floating_point() else None
            found[name] = all_of_it.to("cpu", copy=True).to(to or tensor.dtype).contiguous()
    return found


def write(folder: Path, files: Contents) -> None:
    """Write the files into an existing folder, and last their manifest."""
    for name, content in files.items():
        if name.endswith(".json"):
            write_json(folder / name, content)
        else:
            save_file(content, folder / name)
    digests = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in files}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": digests})


def verify(folder: Path) -> None:
    """ValueError if a file is missing or is not what was written; a folder without a manifest is taken as it is."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_json(folder / MANIFEST)
    try:
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{folder / MANIFEST} is damaged: take another checkpoint, or copy it again") from None
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: the checkpoint or tokenizer is not whole")
        if path.stat().st_size != size or _digest(path) != digest:
            raise ValueError(f"{path} is damaged, not what was written: take another checkpoint, or copy it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: str | Path) -> tuple[Transformer, dict[str, Modality], dict[str, Any]]:
    """The model (in evaluation mode), its modalities and config.json of a checkpoint, or of the newest one of a run.

    ValueError, in one line: no checkpoint there, a file missing or broken, weights of another shape, a modality that
    is not installed.
    """
    folder = find(folder)
    verify(folder)
    config = read_config(folder)
    tensors = read_tensors(folder / "modalities.safetensors")
    modalities = {name: saved_modality(folder, config, tensors, name) for name in config["modalities"]}
    try:
        model = Transformer(modalities=modalities, conditions=config["conditions"], **config["model"])
    except TypeError as error:
        raise ValueError(f"{folder}/config.json does not describe a model of this version: {error}") from error
    load_tensors(model_tensors(model), folder / "model.safetensors")
    return model.eval(), modalities, config


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; a ValueError says if it is of another version."""
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {config.get('format')!r}, this version reads {FORMAT}: upgrade anyxform")
    return config


def saved_modality(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, **changes: Any
) -> Modality:
    """One of the modalities that a checkpoint's config.json and modalities.safetensors describe.

    `changes` are arguments that are to be other than there. ValueError: they do not fit its tokenizer.
    """
    saved = config["modalities"][name]
    changed = {key: value for key, value in changes.items() if saved.get(key) != value}
    state = {key.removeprefix(f"{name}."): it for key, it in tensors.items() if key.startswith(f"{name}.")}
    return _build(folder, name, {**saved, **changed}, state, changed)


def find(path: str | Path) -> Path:
    """The checkpoint that is meant by a path: itself, or the newest of a run's folder or of its `checkpoints`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}: give the folder of a run or of one of its checkpoints")
    if (path / "model.safetensors").exists() or (path / "config.json").exists():
        return path
    steps = sorted([*path.glob("step-*"), *path.glob("checkpoints/step-*")], key=lambda folder: folder.name)
    if not steps:
        raise ValueError(f"{path} holds no checkpoint: give the folder of a run or of one of its checkpoints")
    return steps[-1]


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor once, under its first name."""
    every = dict(model.named_parameters(remove_duplicate=False))
    aliases = every.keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}


def load_tensors(own: Mapping[str, Tensor], path: Path) -> None:
    """Copy a file's tensors into `own`, which must have exactly these names and shapes."""
    saved = read_tensors(path)
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved:
            where = "the model" if name in saved else "the file"
            raise ValueError(f"{path} is of another model: {name} is not in {where}")
        if own[name].shape != saved[name].shape:
            raise ValueError(
                f"{path} is of another model: {name} has shape {tuple(saved[name].shape)}, not {tuple(own[name].shape)}"
            )
        fill(own[name], saved[name])
