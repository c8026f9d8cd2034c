"""`anyxform train [key=value …]`: train a model, or go on training one."""

import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from anyxform import __version__, resume
from anyxform import train as training
from anyxform.cli.build import Data, build_modalities, pick_device
from anyxform.cli.conf import compose
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.optim import EMA, adamw, learning_rate
from anyxform.overfit import ENOUGH, one_of_each, overfit, rows_of
from anyxform.progress import Journal, display
from anyxform.samples import probes, write_samples
from anyxform.sequence import Batch
from anyxform.train import Metrics, TrainState


def main(overrides: list[str]) -> int:
    """Run the command with hydra overrides; returns the exit code, 130 or 143 after Ctrl-C or SIGTERM."""
    config = compose("train", overrides)
    torch.manual_seed(config["seed"])
    run = Run(config, overrides)
    if config["train"]["debug"] is None:
        return run.train()
    if config["train"]["debug"] != "overfit":
        raise ValueError(f"train.debug={config['train']['debug']!r} is unknown: use overfit, or null for none")
    return run.overfit()


class Run:
    """A run as its config describes it: the parts, put together."""

    def __init__(self, config: dict[str, Any], overrides: Sequence[str]) -> None:
        self.config, self.options = config, config["train"]
        self.dir = Path(config["run_dir"] or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        self.start = first_checkpoint(self.dir, config["resume"], named=config["run_dir"] is not None)
        kept = [word for word in overrides if not word.startswith(("run_dir=", "resume="))]
        self.command = shlex.join(["anyxform", "train", *kept, f"run_dir={self.dir}"])
        self.device = pick_device(self.options["device"])
        make_deterministic(self.device)
        self.modalities = build_modalities(config["modality"], config["tokenizers"])
        self.data = Data.open(config["data"], self.modalities)
        self.state = self._fresh_state()
        self.directions = [str(it) for it in self.data.trained_directions(list(self.modalities))]

    def _fresh_state(self) -> TrainState:
        model = Transformer(modalities=self.modalities, conditions=self.data.conditions, **self.config["model"])
        model.to(self.device)
        if self.options["compile"]:
            training.compile_blocks(model)
        optim = {name: self.config["optim"][name] for name in ("lr", "betas", "weight_decay")}
        ema = self.options["ema"]
        return TrainState(model, adamw(model, **optim), None if ema is None else EMA(model, ema))

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when the run goes on, as it decides the order of the data."""
        data = self.config["data"]
        return {"seed": self.config["seed"], "data": {name: data[name] for name in ("tokens_per_row", "pool")}}

    @property
    def facts(self) -> dict[str, Any]:
        """How the model was trained, for its card."""
        state = self.state
        return {
            "command": self.command,
            "seed": self.config["seed"],
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 1),
            "hours": round(state.seconds / 3600, 3),
            "skipped": state.skipped,
            "parameters": state.model.num_parameters(),
            "device": str(self.device),
            "samples": {name: len(dataset) for name, dataset in self.data.train.items()},
            "versions": {"anyxform": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        }

    def save(self) -> Path:
        return resume.save(
            self.dir, self.state, self.modalities,
            settings=self.settings, directions=self.directions, facts=self.facts, keep=self.options["keep"],
        )  # fmt: skip

    def steps(self, rows: Iterable[tuple[Batch, Any]]) -> Iterator[Metrics]:
        """The run's steps as its config wants them."""
        options, optim = self.options, self.config["optim"]
        schedule = {name: optim[name] for name in ("warmup", "schedule", "final", "decay")}
        factor = partial(learning_rate, steps=options["steps"], **schedule)
        names = ("steps", "rows_per_step", "exit_every", "max_nonfinite", "clip", "bf16", "exit_weight", "length_weight")
        return training.train(
            self.state,
            rows,
            lr=lambda step: optim["lr"] * factor(step),
            seed=self.config["seed"],
            weights=options["loss_weights"],
            **{name: options[name] for name in names},
        )

    def train(self) -> int:
        """Train to the end or until a signal, and say where the result is."""
        options, state = self.options, self.state
        if self.start is not None:
            resume.load(self.start, state, self.modalities, self.settings)
        if state.step >= options["steps"]:
            raise ValueError(f"{self.start} has already been trained for {state.step} steps: give a larger train.steps")
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.dir / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        pad = options["compile"] or self.device.type == "cuda"
        rows = self.data.rows("train", state.model, self.modalities, seed=self.config["seed"], pad=pad)
        shown = display(options["steps"], state.step, every=options["log_every"])
        with interrupts() as received, shown, Journal(self.dir, state.step) as journal:
            shown.say(self.summary())
            validate, sample = self._validation(pad), self._probes(journal)
            for metrics in self.steps(rows.from_position(state.position)):
                step, last = state.step, state.step == options["steps"] or bool(received)
                if due(step, options["val_every"], last):
                    metrics |= validate()
                if due(step, options["log_every"]) or "val_loss" in metrics:
                    journal.write(metrics)
                shown.update(metrics)
                if due(step, options["sample_every"], last):
                    sample()
                if due(step, options["checkpoint_every"], last):
                    self.save()
                if received:
                    break
        for reason in rows.counts.reasons[:3]:
            print(f"left out: {reason}", file=sys.stderr)
        return self._farewell(received)

    def summary(self) -> str:
        """One line about what is going to happen."""
        start = f"resuming {self.start}" if self.start else f"training into {self.dir}"
        samples = sum(map(len, self.data.train.values()))
        millions = self.state.model.num_parameters() / 1e6
        return (
            f"{start}: {millions:.1f} M parameters, {samples} samples, {len(self.directions)} directions, "
            f"steps {self.state.step} to {self.options['steps']} on {self.device}"
        )

    def _farewell(self, received: list[int]) -> int:
        if not received:
            print(f"trained for {self.state.step} steps: {self.dir}", file=sys.stderr)
            return 0
        print(f"stopped and saved after step {self.state.step}; go on with: {self.command} resume=auto", file=sys.stderr)
        return 128 + received[0]
