"""`anyxform train [key=value …]`: train a model, or go on training one."""

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from anyxform import __version__, resume
from anyxform import train as training
from anyxform.checkpoint import read_config
from anyxform.cli.build import (
    Data,
    build_modalities,
    check_data,
    check_keys,
    listed,
    modality_classes,
    prepared,
    typed,
)
from anyxform.cli.conf import compose
from anyxform.cli.interrupts import Interrupted, Interrupts
from anyxform.cli.launch import LOST, elsewhere
from anyxform.cli.origin import arguments, began_with, directions_before, origin_of, sized
from anyxform.data import Counts
from anyxform.distributed import ALONE, Lost, Parallel, World, joined, whole_model
from anyxform.field import did_you_mean
from anyxform.float8 import to_float8
from anyxform.hardware import multiplies_bf16
from anyxform.init_from import begin, told
from anyxform.modality import registry
from anyxform.model import Transformer, compile_blocks
from anyxform.optim import EMA, learning_rate, optimizer_named
from anyxform.overfit import ENOUGH, one_of_each, overfit, rows_of
from anyxform.parts import freeze
from anyxform.pipeline import Pipeline, pick_device
from anyxform.progress import Display, Journal, Silent, display
from anyxform.rows import Rows, merged
from anyxform.samples import probes, write_samples
from anyxform.sequence import Batch, pack
from anyxform.storage import without_secrets
from anyxform.train import Metrics, TrainState, averaged, validation_loss


def main(overrides: list[str]) -> int:
    """Run the command with hydra overrides; returns the exit code, 130 or 143 after Ctrl-C or SIGTERM."""
    config = typed(compose("train", prepared(overrides)), compose("train", []))
    check_data(config["data"])
    check_keys(config)
    debug = config["train"]["debug"]
    if debug not in (None, "overfit"):
        raise ValueError(f"train.debug={debug} is unknown: use overfit, or null for none")
    if (code := elsewhere(config["distributed"], overrides, config["run_dir"])) is not None:
        return code
    try:
        with joined(config["distributed"]["timeout"]) as world:
            torch.manual_seed(config["seed"])
            run = Run(config, overrides, world)
            code = run.overfit() if debug else run.train()
    except Lost as error:
        print(f"anyxform: error: {error}", file=sys.stderr)
        return LOST
    except (ValueError, OSError):
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # mostly the process that leads says the same, whereupon this one is ended
        raise
    if world.size > 1:
        sys.stderr.flush()
        os._exit(code)  # threads of gloo that outlive the interpreter abort the process now and then
    return code


class Run:
    """A run as its config describes it: the parts, put together."""

    def __init__(self, config: dict[str, Any], overrides: Sequence[str], world: World = ALONE) -> None:
        self.config, self.options, self.world = config, config["train"], world
        for name, value, least in (
            ("seed", config["seed"], 0),
            ("train.steps", self.options["steps"], 1),
            ("train.minutes", self.options["minutes"], 0),
            ("train.rows_per_step", self.options["rows_per_step"], 1),
            ("train.align_weight", self.options["align_weight"], 0),
            ("data.num_workers", config["data"]["num_workers"], 0),
        ):
            if value is None or not least <= value < math.inf:
                raise ValueError(f"{name}={value} is not possible: give {least} or more")
        if (kind := config["distributed"]["checkpoint"]) not in ("whole", "sharded"):
            raise ValueError(f"distributed.checkpoint={kind!r} is unknown: use whole or sharded")
        if self.options["bf16"] not in (None, True, False):
            raise ValueError(f"train.bf16={self.options['bf16']} is not possible: give true, false, or null (on GPUs)")
        if self.options["debug"] and world.size > 1:
            raise ValueError(f"train.debug={self.options['debug']} is for one process, not {world.size}")
        if self.options["align_weight"] and not listed(config["data"].get("aligned")):
            raise ValueError(
                f"train.align_weight={self.options['align_weight']:g} is of nothing: name directions in data.aligned"
            )
        if self.options["rows_per_step"] < world.size:
            raise ValueError(
                f"train.rows_per_step={self.options['rows_per_step']} is not possible with {world.size} processes: "
                "give each of them a row at least"
            )
        self.dir = Path(world.first(str(config["run_dir"] or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}")))
        named = config["run_dir"] is not None
        start = resume.first_checkpoint(self.dir, config["resume"], named=named) if world.leads else None
        self.start: Path | None = world.first(start)
        kept = [word for word in overrides if not word.startswith(("run_dir=", "resume="))]
        self.command = shlex.join(["anyxform", "train", *kept, f"run_dir={self.dir}"])
        self.device = pick_device(self.options["device"])  # in a world of many, torch's current one
        if self.options["bf16"] is None:
            self.options["bf16"] = multiplies_bf16(self.device)
        classes = modality_classes(config["modality"])
        self.data = Data.open(config["data"], classes)
        self.origin = origin_of(config["model"], self.start)
        self.began_with = began_with(self.origin, self.start)
        config["model"] = sized(config["model"], self.origin, overrides)
        used = self.data.used(list(classes)) or set(classes)
        chosen, known = config["modality"], set(classes)
        if self.start is not None:
            known = set(read_config(self.start)["modalities"])
        if used <= known:  # else what is new is said below; what was left out stays so, though it has a tokenizer now
            chosen = {name: it for name, it in chosen.items() if name in known}
        self.modalities = build_modalities(chosen, config["tokenizers"], self.origin, used)
        self.left_out = [name for name in classes if name not in self.modalities]
        if self.left_out:
            self.data = Data.open(config["data"], self.modalities)
        for name in self.options["loss_weights"] or {}:
            if name not in (names := [*self.modalities, *registry()]):
                raise ValueError(f"train.loss_weights names {name!r}: {did_you_mean(name, names)}")
        self.taken = ""
        self.state = self._fresh_state()
        self.directions = [str(it) for it in self.data.trained_directions(list(self.modalities))]
        self.directions_before = directions_before(self.origin, self.start, self.modalities)

    def _fresh_state(self) -> TrainState:
        conditions = self.data.conditions(self.modalities)
        model = Transformer(modalities=self.modalities, conditions=conditions, **arguments(self.config["model"]))
        if self.origin is not None and self.start is None:
            taken = told(model, begin(model, self.origin, self.modalities))
            self.taken = f"\nfrom {self.origin.folder}: {taken}"
        freeze(model, listed(self.options.get("freeze")))
        for block in model.blocks:
            block.recomputes = self.options["checkpoint_activations"]
        if self.options["float8"]:
            to_float8(model, device=self.device)
        if self.options["compile"]:
            compile_blocks(model, whole=self.device.type == "cuda")
        strategy = self.config["distributed"]["strategy"]
        self.parallel = Parallel(model, self.world, strategy, bf16=self.options["bf16"], device=self.device)
        optim = {name: self.config["optim"].get(name) for name in ("lr", "betas", "weight_decay", "part_lr")}
        make = optimizer_named(self.config["optim"]["name"])
        ema = self.options["ema"]
        return TrainState(model, make(model, **optim), None if ema is None else EMA(model, ema))

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
            "command": without_secrets(self.command),
            "began_with": self.began_with,
            "seed": self.config["seed"],
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 1),
            "hours": round(state.seconds / 3600, 3),
            "skipped": state.skipped,
            "parameters": state.model.num_parameters(),
            "processes": self.world.size,
            "device": str(self.device),
            "samples": {name: len(dataset) for name, dataset in self.data.train.items()},
            "hold_out": self.data.directions.hold_out,
            "other_decoding": self.config["data"].get("other_decoding", 0.0),
            "aligned": listed(self.config["data"].get("aligned")) if self.options["align_weight"] else [],
            "versions": {"anyxform": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        }

    def snapshot(self, val_loss: float | None = None) -> resume.Snapshot:
        """A copy of the run as it stands, for a checkpoint; of use in the process that leads, made by all of them."""
        state = replace(self.state, position=merged(self.world.gather(self.state.position)))
        return resume.snapshot(
            state, self.modalities,
            settings=self.settings, facts=self.facts, val_loss=val_loss,
            directions=list(dict.fromkeys([*self.directions, *self.directions_before])),
            world=self.world, sharded=self.config["distributed"]["checkpoint"] == "sharded",
        )  # fmt: skip

    @property
    def keep(self) -> resume.Keep:
        options = self.options
        return resume.Keep(options["keep"], options["keep_best"], options["keep_every"])

    @property
    def planned(self) -> int:
        """How many steps there will be: `train.steps`, or as many as fit into `train.minutes` at the speed so far."""
        state, steps, limit = self.state, self.options["steps"], 60 * self.options["minutes"]
        if not limit or not state.step:
            return steps
        return max(state.step, min(steps, math.ceil(state.step * limit / state.seconds)))

    def learning_rate(self, step: int) -> float:
        """That of a step. ValueError: the schedule is none."""
        optim = self.config["optim"]
        schedule = {name: optim[name] for name in ("warmup", "schedule", "final", "decay")}
        return float(optim["lr"]) * learning_rate(step, steps=self.planned, **schedule)

    def steps(self, rows: Iterable[tuple[Batch, Any]]) -> Iterator[Metrics]:
        """The run's steps as its config wants them."""
        options = self.options
        names = (
            "steps", "rows_per_step", "exit_every", "max_nonfinite", "clip", "bf16", "exit_weight", "length_weight",
            "align_weight",
        )  # fmt: skip
        return training.train(
            self.state,
            rows,
            lr=self.learning_rate,
            seconds=60 * options["minutes"] or math.inf,
            seed=self.config["seed"],
            parallel=self.parallel,
            weights=options["loss_weights"],
            **{name: options[name] for name in names},
        )

    def train(self) -> int:
        """Train to the end or until a signal, and say where the result is."""
        options, state = self.options, self.state
        if self.start is not None:
            self._resume(self.start)
        if state.step >= self.planned:
            more = "train.minutes" if state.step < options["steps"] else "train.steps"
            self._tell(f"{self.start} has been trained for {state.step} steps: for more, give a larger {more}")
            return 0
        pad = options["compile"] or self.device.type == "cuda"
        rows = self.rows(pad)  # mistakes are said before anything is written
        rows.check(state.position)
        self.learning_rate(state.step)
        if self.world.leads:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._write_config()
        shown = display(options["steps"], state.step, every=options["log_every"]) if self.world.leads else Silent()
        saver = resume.Saver(self.dir, self.keep, failed=shown.say, timeout=self.config["distributed"]["timeout"])
        writing = Journal(self.dir, state.step) if self.world.leads else nullcontext()
        with Interrupts() as interrupts, shown, writing as journal, saver:
            shown.say(self.summary())
            if absent := self.data.absent:
                shown.say(f"without {', '.join(absent)}: no shards to train on in {self.config['data']['root']}")
            if self.left_out:
                shown.say(f"without {', '.join(self.left_out)}: in no trained direction, and there was no tokenizer")
            if idle := self.data.idle_patterns(list(self.modalities)):
                shown.say(
                    f"no training sample fits {', '.join(idle)} of data.directions, data.hold_out or data.aligned"
                )
            validate, sample = self._validation(pad), self._probes(journal)
            self._steps(rows, interrupts, shown, journal, saver, validate, sample)
            saver.wait()
        self._tell_of_data(rows.counts)
        return self._farewell([number for some in self.world.gather(interrupts.received) for number in some])

    def rows(self, pad: bool) -> Rows:
        """The rows of training that are this process's."""
        count, seed = self.options["rows_per_step"], self.config["seed"]
        own = training.share_of(count, self.world)
        return self.data.rows("train", self.state.model, self.modalities, seed=seed, pad=pad, lanes=count, own=own)

    def _tell(self, text: str) -> None:
        if self.world.leads:
            print(text, file=sys.stderr)

    def _tell_of_data(self, counts: Counts) -> None:
        every = Counts()
        for other in self.world.gather(counts):
            every.add(other)
        if fetched := every.fetched:
            size = f"{fetched['shards']} shards fetched, {fetched['bytes'] / 1e9:.2f} GB"
            self._tell(f"{size}; {fetched['failed']} tries failed and were made again")
        if every.reasons:
            self._tell(f"left out {every.broken} of {every.samples} samples: {'; '.join(every.reasons[:3])}")

    def _write_config(self) -> None:
        """config.yaml; if the run goes on with another, the one so far is kept, named by its last step."""
        path, text = self.dir / "config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        if self.start is not None and path.is_file() and _trained_by(path.read_text()) != _trained_by(text):
            kept = self.dir / f"config-until-{self.state.step:08d}.yaml"
            if not kept.exists():  # else this one has trained nothing
                path.rename(kept)
        path.write_text(text)

    def _resume(self, checkpoint: Path) -> None:
        resume.load(checkpoint, self.state, self.settings, self.modalities)
        if not self.world.leads:
            return
        for later in resume.checkpoints(self.dir):
            if later.name > checkpoint.name:  # else they would outlive those that are to come
                later.rename(later.with_name(f"broken-{later.name}"))
                print(f"{later} is not whole: it is kept as broken-{later.name}", file=sys.stderr)

    def _steps(
        self,
        rows: Rows,
        interrupts: Interrupts,
        shown: Display,
        journal: Journal | None,
        saver: resume.Saver,
        validate: Callable[[], Metrics],
        sample: Callable[[int], None],
    ) -> None:
        """Do the steps, and between them what is due."""
        options, state, begun = self.options, self.state, self.state.step
        stream: Iterator[Any] = rows.from_position(state.position)
        if self.world.size == 1:  # of many processes, none may leave the others in the middle of a step
            stream = interrupts.until_one(stream)
        try:
            for metrics in self.steps(stream):
                step, stop = state.step, self.world.any(bool(interrupts.received))
                last = step == self.planned
                if due(step, options["val_every"], last) and not stop:
                    metrics |= validate()
                if journal and (due(step, options["log_every"], last) or "val_loss" in metrics):
                    journal.write(metrics)
                shown.update(metrics | {"planned": self.planned})
                if due(step, options["sample_every"], last) and not stop:
                    sample(step)
                if last or stop or due(step, options["checkpoint_every"]):
                    self._save(saver, metrics.get("val_loss"))
                if stop:
                    break
        except Interrupted:
            if state.step > begun and not due(state.step, options["checkpoint_every"]):  # else it was saved just now
                self._save(saver)

    def _save(self, saver: resume.Saver, val_loss: float | None = None) -> None:
        saver.finish()  # else two copies of the run would be in memory
        taken = self.snapshot(val_loss)
        if self.world.leads or taken.sharded:
            saver.save(taken)

    def _validation(self, pad: bool) -> Callable[[], Metrics]:
        """What measures the averaged weights on the same rows of the validation split again and again."""
        count = self.options["val_rows"] if self.data.val and self.options["val_every"] else 0
        batches: list[Batch] = []
        if count:
            rows = self.data.rows("val", self.state.model, self.modalities, seed=0, pad=pad)
            every = [batch for batch, _ in islice(rows.from_position(), count)]
            every += [pack([], self.state.model.condition_ids, every[0].size)] * (-count % self.world.size)
            batches = every[self.world.rank :: self.world.size]

        def validate() -> Metrics:
            if not batches:
                return {}
            with averaged(self.state) as model:
                loss, directions = validation_loss(model, batches, bf16=self.options["bf16"], parallel=self.parallel)
            return {"val_loss": loss, "val_directions": directions}

        return validate

    def _probes(self, journal: Journal | None) -> Callable[[int], None]:
        """What answers the same few items again and again, and writes the answers down."""
        count = self.options["num_probes"] if self.options["sample_every"] else 0
        items = probes(self.data.val or self.data.train, self.modalities, self.data.directions, count) if count else []

        def sample(step: int) -> None:
            if not items:
                return
            with averaged(self.state) as model:
                whole: Transformer | None = model
                if self.parallel.sharded:
                    whole = whole_model(model, self.modalities, wanted=journal is not None)
                if journal and whole:
                    answers = Pipeline(whole, self.modalities).answer(
                        [item.direction for item in items], [item.sources for item in items]
                    )
                    folder = self.dir / "samples" / f"step-{step:08d}"
                    write_samples(folder, items, answers, self.modalities, journal.tensorboard, step)

        return sample

    def overfit(self) -> int:
        """Learn one example of every direction by heart, and say which cannot be learnt; then the exit code is 1."""
        directions = self.data.trained_directions(list(self.modalities))
        examples, broken = one_of_each(self.data.train, self.modalities, directions, self.config["seed"])
        failed = {name: f"every sample of it is broken; the first: {reason}" for name, reason in broken.items()}
        losses: dict[str, float] = {}
        if examples:
            size = self.config["data"]["tokens_per_row"]
            batches = rows_of(list(examples.values()), self.state.model.condition_ids, size)
            with display(self.options["steps"], every=self.options["log_every"]) as shown:
                shown.say(f"one batch of {len(examples)} directions, to be learnt by heart: a loss below {ENOUGH}")
                for metrics in overfit(self.state, batches, steps=self.options["steps"], lr=self.config["optim"]["lr"]):
                    shown.update(metrics)
                    losses = metrics["directions"]
        failed |= {name: f"loss {loss:.3f}" for name, loss in losses.items() if not loss < ENOUGH}
        for name, why in sorted(failed.items()):
            print(f"not learnt after {self.state.step} steps: {name} ({why})", file=sys.stderr)
        print(f"{len(directions) - len(failed)} of {len(directions)} directions are learnt by heart", file=sys.stderr)
        return 1 if failed else 0

    def summary(self) -> str:
        """One line about what is going to happen."""
        start = f"resuming {self.start}" if self.start else f"training into {self.dir}"
        samples = sum(map(len, self.data.train.values()))
        millions = self.state.model.num_parameters() / 1e6
        steps = f"steps {self.state.step} to {self.options['steps']}"
        if minutes := self.options["minutes"]:
            steps += f" or what fits into {minutes:g} minutes"
        return (
            f"{start}: {millions:.1f} M parameters, {samples} samples, {len(self.directions)} directions, "
            f"{steps} on {self.device}"
            + (f", {self.world.size} processes ({self.config['distributed']['strategy']})" * (self.world.size > 1))
            + self.taken
        )

    def _farewell(self, received: list[int]) -> int:
        if not received:
            self._tell(f"trained for {self.state.step} steps: {self.dir}")
            return 0
        saved = (
            f"stopped and saved after step {self.state.step}" if self.state.step else "stopped before the first step"
        )
        self._tell(f"{saved}; go on with: {self.command} resume=auto")
        return 128 + received[0]


def _trained_by(text: str) -> dict[str, Any]:
    """What of a config.yaml can change the weights, or says how long to go on."""
    return {key: value for key, value in yaml.safe_load(text).items() if key not in ("run_dir", "resume")}


def due(step: int, every: int, last: bool = False) -> bool:
    """Whether it is time for what is done every so many steps (0: never) and at the last."""
    return every > 0 and (last or step % every == 0)
