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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyxform import sharded_files
from anyxform.modality import Modality, registry
from anyxform.model import Transformer
from anyxform.sharded_files import Part
from anyxform.sharding import fill, whole

FORMAT = 1
MANIFEST = "manifest.json"
Contents = dict[str, Any]
"""Files by name: for one that ends with .safetensors tensors by name, or this process's part of them; plain values for
one that ends with .json."""


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; it takes that name, in one step, once all of it is on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        _put(temporary, folder, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put(temporary: Path, folder: Path, old: Path) -> None:
    """Give a folder that is all on disk its name; what has it is moved to `old`."""
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    if folder.exists():  # a rename cannot replace a folder that holds something
        folder.rename(old)
    temporary.rename(folder)
    _sync(folder.parent)


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
    """What is no unicode, as in the name of a file, is written as JSON's own ``\\udcff``."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """A JSON file's value; a ValueError says if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint or tokenizer is not whole") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take another checkpoint, or copy it again") from error


def digest_of_weights(folder: Path) -> str | None:
    """By which weights and tokenizers of a checkpoint are known: short, and another for others; None: no manifest.

    Those of an export are others, as it rounds them.
    """
    if not (folder / MANIFEST).is_file():
        return None
    files = read_json(folder / MANIFEST)["files"]
    digests = [f"{name} {it['sha256']}" for name, it in sorted(files.items()) if name.startswith("mod")]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def holds(path: Path) -> bool:
    """Whether there is a file of tensors, or a folder of its parts."""
    return path.is_file() or path.with_suffix("").is_dir()


def read_tensors(path: Path, like: Callable[[str], Tensor | None] = lambda name: None) -> dict[str, Tensor]:
    """A safetensors file's tensors, whole; a ValueError says if it is missing or broken.

    Where its parts are there in its place, they are put together, or parted anew as what `like` gives for a name is.
    """
    try:
        return sharded_files.read(parts, like) if (parts := path.with_suffix("")).is_dir() else load_file(path)
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
    copy: Callable[[Mapping[str, Tensor]], Any] | None = None,
) -> Contents:
    """What inference needs, copied: `weights` (their average, say) or the model's own, and the modalities.

    `directions` are those trained on; `facts` say how (plain values, for a model card). `copy`: of a file's tensors;
    None: `copied`.
    """
    copy = copy or copied
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
        "model.safetensors": copy({name: (weights or own)[name] for name in own}),
        "modalities.safetensors": copy(states),
    }


def save(folder: str | Path, model: Transformer, modalities: Mapping[str, Modality], **given: Any) -> None:
    """Write what `load` reads, whole or not at all; `given` is what `contents` takes."""
    with atomic_folder(Path(folder)) as temporary:
        write(temporary, contents(model, modalities, **given))


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
    _write_manifest(folder, _write_files(folder, files))


def write_together(folder: Path, files: Contents, process: int, processes: int, timeout: float) -> None:
    """Write a folder of which every process has its own `files`; it appears whole once the first has seen them all.

    OSError: this one's cannot be written; in the first process, also another's, or they do not come for `timeout`
    seconds.
    """
    temporary = folder.parent / f".{folder.name}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    if process == 0:
        for left in set(folder.parent.glob(".*.tmp")) - {temporary}:  # by a slow process, of a save that had failed
            shutil.rmtree(left, ignore_errors=True)
    try:
        try:
            written = _write_files(temporary, files)
            for name in written:
                _sync(temporary / name)
        except (OSError, SafetensorError) as error:
            sharded_files.write_note(temporary, process, {"error": str(error)})
            raise
        sharded_files.write_note(temporary, process, {"files": written})
        if process == 0:
            notes = sharded_files.read_notes(temporary, processes, timeout)
            _write_manifest(temporary, {name: entry for note in notes for name, entry in note["files"].items()})
            _put(temporary, folder, temporary.with_suffix(".old"))
    finally:
        if process == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(temporary.with_suffix(".old"), ignore_errors=True)


def _write_files(folder: Path, files: Contents) -> dict[str, dict[str, Any]]:
    """Their sizes and digests by name; a part lies in a folder that is named as the whole would be."""
    paths: list[Path | None] = []
    for name, content in files.items():
        path = folder / name
        if isinstance(content, Part):
            paths.append(content.write(path.with_suffix("")))
            continue
        write_json(path, content) if name.endswith(".json") else save_file(content, path)
        paths.append(path)
    found = [path for path in paths if path is not None]
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in found}


def _write_manifest(folder: Path, files: Mapping[str, Any]) -> None:
    write_json(folder / MANIFEST, {"format": FORMAT, "files": dict(files)})


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
    parts = path.with_suffix("")
    saved = dict[str, Tensor]() if parts.is_dir() else read_tensors(path)
    there = sharded_files.shapes(parts) if parts.is_dir() else {name: tensor.shape for name, tensor in saved.items()}
    for name in sorted(own.keys() | there.keys()):
        if name not in own or name not in there:
            where = "the model" if name in there else "the file"
            raise ValueError(f"{path} is of another model: {name} is not in {where}")
        if own[name].shape != there[name]:
            raise ValueError(
                f"{path} is of another model: {name} has shape {tuple(there[name])}, not {tuple(own[name].shape)}"
            )
    if parts.is_dir():
        sharded_files.fill(own, parts)
    for name, tensor in saved.items():
        fill(own[name], tensor)
