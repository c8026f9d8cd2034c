"""Going on with a run: the checkpoints in its folder, and what they hold beside the weights for inference.

run_dir/checkpoints/latest                          the name of the newest
run_dir/checkpoints/step-00000100/                  see `anyxform.checkpoint`, and
    weights.safetensors                             the raw weights, where model.safetensors is their average
    optimizer.safetensors                           tensors named "<parameter>.<state>"
    state.json                                      step, position in the data, counts, settings that must not change
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyxform import checkpoint
from anyxform.modality import Modality
from anyxform.train import TrainState

PREFIX = "step-"
COUNTS = ("step", "position", "tokens", "skipped", "seconds")


def checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{PREFIX}*"))


def newest_whole(run_dir: Path) -> Path | None:
    """The newest checkpoint of which every file can be opened; None if there is none."""
    return next((folder for folder in reversed(checkpoints(run_dir)) if is_whole(folder)), None)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint can be resumed from, judged by its files' headers and lengths."""
    try:
        for name in ("config.json", "state.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        files = {folder / f"{name}.safetensors" for name in ("model", "modalities", "optimizer")}
        for path in files | set(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def save(
    run_dir: Path,
    state: TrainState,
    modalities: Mapping[str, Modality],
    *,
    settings: Mapping[str, Any],
    directions: list[str],
    facts: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Write a checkpoint of the run as it stands, point `latest` at it and delete all but the newest `keep`.

    `settings` are those that must be the same when the run goes on (see `load`).
    """
    folder = run_dir / "checkpoints" / f"{PREFIX}{state.step:08d}"
    with checkpoint.atomic_folder(folder) as temporary:
        average = None if state.ema is None else state.ema.weights
        checkpoint.save(temporary, state.model, modalities, weights=average, directions=directions, facts=facts)
        if average is not None:
            checkpoint.save_tensors(checkpoint.model_tensors(state.model), temporary / "weights.safetensors")
        checkpoint.save_tensors(_optimizer_tensors(state), temporary / "optimizer.safetensors")
        counts = {name: getattr(state, name) for name in COUNTS}
        checkpoint.write_json(temporary / "state.json", {**counts, "settings": dict(settings)})
    pointer = folder.parent / ".latest"
    pointer.write_text(folder.name + "\n", encoding="utf-8")
    pointer.replace(folder.parent / "latest")
    for old in checkpoints(run_dir)[: -max(1, keep)]:
        shutil.rmtree(old)
    return folder


def load(folder: Path, state: TrainState, settings: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    """Bring a fresh state of the same run to where the checkpoint was taken.

    ValueError if a setting is another than the run was started with, named with both values, or if a modality or its
    tokenizer is another.
    """
    saved = checkpoint.read_json(folder / "state.json")
    config = checkpoint.read_json(folder / "config.json")
    _check_same(folder, saved["settings"], json.loads(json.dumps(dict(settings))))
    if list(state.model.condition_ids) != config["conditions"]:
        raise ValueError(
            f"{folder} was trained with the conditions {config['conditions']}, the data now give "
            f"{list(state.model.condition_ids)}: resume with the same data"
        )
    _check_modalities(folder, config["modalities"], modalities)
    raw = folder / "weights.safetensors"
    checkpoint.load_tensors(
        checkpoint.model_tensors(state.model), raw if raw.exists() else folder / "model.safetensors"
    )
    if state.ema is not None:
        averages = {name: state.ema.weights[name] for name in checkpoint.model_tensors(state.model)}
        checkpoint.load_tensors(averages, folder / "model.safetensors")
    _load_optimizer(state, checkpoint.read_tensors(folder / "optimizer.safetensors"))
    for name in COUNTS:
        setattr(state, name, saved[name])


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> None:
    for key in sorted(before.keys() | now.keys()):
        name, old, new = f"{inside}{key}", before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _check_same(folder, old, new, f"{name}.")
        elif old != new:
            raise ValueError(
                f"{folder} was trained with {name}={old!r}, not {new!r}: "
                "resume with that, or start anew in another run_dir"
            )


def _check_modalities(folder: Path, saved: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    now = json.loads(json.dumps({name: modality.config() for name, modality in modalities.items()}))
    states = checkpoint.read_tensors(folder / "modalities.safetensors")
    for name in sorted(saved.keys() | now.keys()):
        own = {f"{name}.{key}": tensor for key, tensor in modalities[name].state().items()} if name in now else {}
        if saved.get(name) != now.get(name) or not all(
            key in states and torch.equal(states[key], tensor.cpu()) for key, tensor in own.items()
        ):
            raise ValueError(
                f"{folder} was trained with another {name} (its arguments or its tokenizer): resume with that, "
                "or start anew in another run_dir"
            )


def _names(state: TrainState) -> list[str]:
    """The parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    return [names[id(parameter)] for group in state.optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names = _names(state)
    parts = state.optimizer.state_dict()["state"]
    return {f"{names[number]}.{key}": tensor for number, part in parts.items() for key, tensor in part.items()}


def _load_optimizer(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    numbers = {name: number for number, name in enumerate(_names(state))}
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if name not in numbers:
            raise ValueError(f"the checkpoint's optimizer knows a parameter that the model lacks: {name}")
        parts.setdefault(numbers[name], {})[part] = tensor
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": parts})
