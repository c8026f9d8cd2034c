"""Going on with a run: the checkpoints in its folder, and what they hold beside the weights for inference.

run_dir/checkpoints/latest                          the name of the newest
run_dir/checkpoints/step-00000100/                  see `anyxform.checkpoint`, and
    weights.safetensors                             the raw weights, where model.safetensors is their average
    optimizer.safetensors                           tensors named "<parameter>.<state>"
    model/, weights/, optimizer/                    in place of these files, where every process writes its own part
    state.json                                      step, position in the data, counts, settings that must not change

A run's checkpoints are copied in memory, which is what the training waits for, and written beside it (`Saver`).
"""

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyxform import checkpoint
from anyxform.distributed import ALONE, World
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.optim import state_names
from anyxform.sharded_files import Part, part
from anyxform.sharding import is_parted, parted
from anyxform.train import TrainState

PREFIX = "step-"
TIMEOUT = 600.0
"""Seconds that the process that leads waits for the other parts of a sharded checkpoint."""
COUNTS = ("step", "position", "tokens", "skipped", "seconds")


def checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{PREFIX}*"))


def newest_whole(run_dir: Path) -> Path | None:
    """The newest checkpoint of which every file is what was written; None if there is none."""
    return next((folder for folder in reversed(checkpoints(run_dir)) if is_whole(folder)), None)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint can be resumed from, judged by its manifest, or its files' headers and lengths."""
    try:
        checkpoint.verify(folder)
        for name in ("config.json", "state.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        needed = {folder / f"{name}.safetensors" for name in ("model", "modalities", "optimizer")}
        parts = {path for path in needed if path.with_suffix("").is_dir()}
        if parts and not (folder / checkpoint.MANIFEST).is_file():  # which alone says how many there must be
            return False
        for path in (needed - parts) | set(folder.rglob("*.safetensors")):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run as it stands at a step, whatever the training does next.

    `files`: all, in the process that leads; in another one its parts of those of which every process writes its own.
    """

    step: int
    files: checkpoint.Contents
    world: World = ALONE
    sharded: bool = False


def snapshot(
    state: TrainState,
    modalities: Mapping[str, Modality],
    *,
    settings: Mapping[str, Any],
    directions: list[str],
    facts: Mapping[str, Any],
    val_loss: float | None = None,
    world: World = ALONE,
    sharded: bool = False,
) -> Snapshot:
    """Copy all that a checkpoint holds. `settings` are those that must be the same when the run goes on (see `load`).

    `val_loss`: of the weights for inference, by which the best checkpoint is told. All processes of a `world` call
    this. The one that leads has the copy; with `sharded`, each has its own part of tensors that are parted.
    """

    def copy(tensors: Mapping[str, Tensor]) -> Part | dict[str, Tensor]:
        if sharded and any(map(is_parted, tensors.values())):
            return part(tensors, world.rank, world.size)
        return checkpoint.copied(tensors, keep=world.leads)

    average = None if state.ema is None else state.ema.weights
    files = checkpoint.contents(state.model, modalities, weights=average, directions=directions, facts=facts, copy=copy)
    if average is not None:
        files["weights.safetensors"] = copy(checkpoint.model_tensors(state.model))
    files["optimizer.safetensors"] = copy(_optimizer_tensors(state))
    counts = {name: getattr(state, name) for name in COUNTS}
    files["state.json"] = json.loads(json.dumps({**counts, "settings": dict(settings), "val_loss": val_loss}))
    if not world.leads:
        files = {name: content for name, content in files.items() if isinstance(content, Part)}
    return Snapshot(state.step, files, world, sharded)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest`, that of the lowest validation loss if `best`, and each `every` steps."""

    newest: int = 3
    best: bool = False
    every: int = 0

    def superfluous(self, folders: Sequence[Path]) -> list[Path]:
        """Those of a run's checkpoints, oldest first, that need not stay."""
        kept = set(folders[-max(1, self.newest) :])
        kept |= {folder for folder in folders if self.every and _step(folder) % self.every == 0}
        judged = {folder: loss for folder in folders if (loss := _val_loss(folder)) is not None} if self.best else {}
        kept |= {min(judged, key=lambda folder: judged[folder])} if judged else set()
        return [folder for folder in folders if folder not in kept]


def _step(folder: Path) -> int:
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def _val_loss(folder: Path) -> float | None:
    try:
        loss = checkpoint.read_json(folder / "state.json").get("val_loss")
    except ValueError:
        return None
    return loss if isinstance(loss, float) else None


def write(
    run_dir: Path,
    taken: Snapshot,
    keep: Keep = Keep(),
    timeout: float = TIMEOUT,
    failed: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a checkpoint, point `latest` at it and delete those that need not be kept.

    Of a sharded one every process calls this, and the one that leads does the rest once it has seen all parts; it waits
    for them for `timeout` seconds. `failed` is told which old one cannot be deleted.
    """
    folder = run_dir / "checkpoints" / f"{PREFIX}{taken.step:08d}"
    if taken.sharded:
        checkpoint.write_together(folder, taken.files, taken.world.rank, taken.world.size, timeout)
        if not taken.world.leads:
            return folder
    else:
        with checkpoint.atomic_folder(folder) as temporary:
            checkpoint.write(temporary, taken.files)
    pointer = folder.parent / ".latest"
    pointer.write_text(folder.name + "\n", encoding="utf-8")
    pointer.replace(folder.parent / "latest")
    for old in keep.superfluous(checkpoints(run_dir)):
        try:
            shutil.rmtree(old)
        except OSError as error:  # the checkpoint is written, which is what counts
            failed(f"{old} cannot be removed: {error}")
    return folder


class Saver:
    """Writes a run's checkpoints one after another while the training goes on. Use it as a context: it ends by waiting.

    One that cannot be written, on a full disk say, leaves those before as they are; `failed` is told, and the next is
    tried like any other.
    """

    def __init__(
        self,
        run_dir: Path,
        keep: Keep = Keep(),
        failed: Callable[[str], None] = lambda text: None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.run_dir, self.keep, self.failed, self.timeout = run_dir, keep, failed, timeout
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def save(self, taken: Snapshot) -> None:
        """Have it written; waits only where the one before is not yet."""
        self.finish()
        self.writing = self._thread.submit(self._write, taken)

    def finish(self) -> None:
        """Wait as `wait` does; if it could not be written, `failed` is told."""
        try:
            self.wait()
        except OSError as error:
            self.failed(str(error))

    def wait(self) -> None:
        """Until the last one is written; an OSError says why it could not be, and where the run can go on from."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, taken: Snapshot) -> Path:
        try:
            return write(self.run_dir, taken, self.keep, self.timeout, self.failed)
        except (OSError, SafetensorError) as error:
            before = newest_whole(self.run_dir)
            rest = f"the run can go on from {before}" if before else "there is none before it"
            raise OSError(f"the checkpoint of step {taken.step} cannot be written ({error}): {rest}") from error


def first_checkpoint(run_dir: Path, wanted: str | bool | None, *, named: bool) -> Path | None:
    """Where a run goes on from; None where it starts anew.

    `wanted` is ``auto`` (the newest whole checkpoint of `run_dir`, if there is one), false, or a checkpoint's path.
    What a killed process left half-written is removed first. ValueError: there is no such checkpoint, or it is not
    clear from which one to go on.
    """
    if wanted == "auto" and not named:
        raise ValueError("resume=auto needs to know which run: give run_dir=")
    if wanted:
        checkpoint.tidy(run_dir / "checkpoints")
    if wanted == "auto":
        found, newest = checkpoints(run_dir), newest_whole(run_dir)
        if found and newest is None:
            raise ValueError(f"{run_dir} holds no whole checkpoint, {found[-1].name} is broken: give another run_dir")
        return newest
    if not wanted:
        if checkpoints(run_dir):
            raise ValueError(f"{run_dir} holds a run already: go on with it by resume=auto, or give another run_dir")
        return None
    folder = Path(str(wanted))
    if not is_whole(folder):
        raise ValueError(
            f"resume={wanted} is no whole checkpoint: give auto, or a folder such as "
            f"{run_dir}/checkpoints/step-00000100"
        )
    if any(later.name > folder.name for later in checkpoints(run_dir)):
        raise ValueError(f"{run_dir} holds later checkpoints than {folder.name}: give another run_dir, or resume=auto")
    return folder


FREE = frozenset({"dropout", "layer_dropout"})
"""Of the model, what may change when a run goes on."""


def load(folder: Path, state: TrainState, settings: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    """Bring a fresh state of the same run to where the checkpoint, a whole one (`is_whole`), was taken.

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
    now = state.model.config()
    before = _completed(config["model"], now, Transformer)
    _check_same(folder, _without(before, FREE), _without(now, FREE), "model.")
    raw = folder / "weights.safetensors"
    raw = raw if checkpoint.holds(raw) else folder / "model.safetensors"
    checkpoint.load_tensors(checkpoint.model_tensors(state.model), raw)
    if state.ema is not None:
        checkpoint.load_tensors(state.ema.weights, folder / "model.safetensors")
    _load_optimizer(state, folder / "optimizer.safetensors")
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
    states = checkpoint.read_tensors(folder / "modalities.safetensors")
    for name in sorted(saved.keys() | modalities.keys()):
        if name not in saved or name not in modalities or not _is_same(modalities[name], saved[name], states):
            raise ValueError(
                f"{folder} was trained with another {name} (its arguments or its tokenizer): resume with that, "
                "or start anew in another run_dir"
            )


def _is_same(modality: Modality, saved: Mapping[str, Any], states: Mapping[str, Tensor]) -> bool:
    now = json.loads(json.dumps(modality.config()))
    before = _completed(saved, now, type(modality))
    free, own = modality.training_arguments, {f"{modality.name}.{key}": it for key, it in modality.state().items()}
    return _without(before, free) == _without(now, free) and all(
        key in states and torch.equal(states[key], tensor.cpu()) for key, tensor in own.items()
    )


def _completed(saved: Mapping[str, Any], now: Mapping[str, Any], made: type) -> dict[str, Any]:
    """A saved config with the arguments that are newer than it: their defaults do what was done without them."""
    known = inspect.signature(made).parameters
    return {key: known[key].default for key in now if key in known} | dict(saved)


def _without(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in names}


def _names(state: TrainState) -> list[str]:
    """The parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    return [names[id(parameter)] for group in state.optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names = _names(state)
    parts = state.optimizer.state_dict()["state"]
    return {f"{names[number]}.{key}": tensor for number, part in parts.items() for key, tensor in part.items()}


def _load_optimizer(state: TrainState, path: Path) -> None:
    numbers = {name: number for number, name in enumerate(_names(state))}
    like = dict(state.model.named_parameters())
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.read_tensors(path, lambda key: like.get(key.rpartition(".")[0])).items():
        name, _, part = key.rpartition(".")
        if name not in like:
            raise ValueError(f"the checkpoint's optimizer knows a parameter that the model lacks: {name}")
        if name not in numbers:  # it is frozen now
            continue
        parts.setdefault(numbers[name], {})[part] = parted(tensor, like=like[name])
    kept = state_names(state.optimizer)
    if any(kept[number] not in (None, part.keys()) for number, part in parts.items()):
        raise ValueError(
            f"{path.parent} was trained with another optim.name: resume with that, or begin anew with its weights by "
            "model.init_from"
        )
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": parts})
