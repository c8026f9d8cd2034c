"""What a run tells: a bar and a table of losses on a terminal, else plain lines; metrics.jsonl and TensorBoard."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

MOST_ROWS = 12
"""More directions than these are shown by pairs of modalities."""


class Display(Protocol):
    """Where the state of a run is shown while it goes on."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, metrics: Mapping[str, Any]) -> None:
        """One step is done, of as many as `planned`, if that is told."""

    def say(self, text: str) -> None:
        """One line about something else."""


def display(steps: int, start: int = 0, *, every: int = 10, console: Console | None = None) -> Display:
    """A bar if the console is a terminal, else a line every `every` steps."""
    console = console or Console(stderr=True)
    return Bar(steps, start, console) if console.is_terminal else Lines(steps, start, every, console)


class Silent:
    """Shows nothing: for the processes of a run that do not lead it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, metrics: Mapping[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Smooth:
    """Running means of the loss and of each direction's, in which early steps do not linger."""

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> None:
        for name, loss in losses.items():
            if math.isfinite(loss):
                self.sums[name] = self.decay * self.sums.get(name, 0.0) + loss
                self.weights[name] = self.decay * self.weights.get(name, 0.0) + 1

    def __getitem__(self, name: str) -> float:
        return self.sums[name] / self.weights[name] if name in self.sums else math.nan

    def means(self) -> dict[str, float]:
        return {name: self[name] for name in sorted(self.sums)}


def by_pairs(losses: Mapping[str, float | None]) -> dict[str, float]:
    """The mean of the directions between the same modalities: ``text:en>image`` and ``text:fr>image`` are one.

    None, which stands in a journal for a loss that was not finite, is left out.
    """
    groups: dict[str, list[float]] = {}
    for direction, loss in losses.items():
        if loss is None:
            continue
        groups.setdefault(re.sub(r":[^+>]*", "", direction), []).append(loss)
    return {pair: sum(values) / len(values) for pair, values in sorted(groups.items())}


def rows(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses to show: of every direction, or of pairs of modalities where those are too many."""
    return dict(losses) if len(losses) <= MOST_ROWS else by_pairs(losses)


class Bar:
    """A progress bar above a table of each direction's running loss and last validation loss."""

    def __init__(self, steps: int, start: int, console: Console) -> None:
        self.progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=steps, completed=start, text="")
        self.live = Live(self.progress, console=console, refresh_per_second=4)
        self.total, self.losses, self.speed = Smooth(), Smooth(), Smooth()
        self.validation: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def update(self, metrics: Mapping[str, Any]) -> None:
        self.total.add({"loss": metrics["loss"]})
        self.losses.add(metrics["directions"])
        self.speed.add({"tokens": metrics["tokens_per_second"]})
        self.validation = metrics.get("val_directions", self.validation)
        text = f"loss {self.total['loss']:.3f}  {self.speed['tokens']:,.0f} tokens/s"
        self.progress.update(self.task, completed=metrics["step"], total=metrics.get("planned"), text=text)
        self.live.update(Group(self.progress, self._table()))

    def say(self, text: str) -> None:
        self.live.console.print(text, highlight=False, markup=False)

    def _table(self) -> Table:
        table = Table("direction", "loss", "validation", box=None, pad_edge=False)
        validation = rows(self.validation)
        for name, loss in rows(self.losses.means()).items():
            table.add_row(name, f"{loss:.3f}", f"{validation[name]:.3f}" if name in validation else "")
        return table


class Lines(Silent):
    """One line every so many steps, for logs and pipes."""

    def __init__(self, steps: int, start: int, every: int, console: Console) -> None:
        self.steps, self.every, self.console = steps, max(1, every), console
        self.total, self.losses, self.rate = Smooth(), Smooth(), Smooth()
        self.start: tuple[int, float] | None = None

    def update(self, metrics: Mapping[str, Any]) -> None:
        self.total.add({"loss": metrics["loss"]})
        self.losses.add(metrics["directions"])
        self.rate.add({"tokens": metrics["tokens_per_second"]})
        step, seconds, self.steps = metrics["step"], metrics["seconds"], metrics.get("planned", self.steps)
        self.start = self.start or (step, seconds)
        if step % self.every == 0 or step == self.steps or "val_loss" in metrics:
            self.say("  ".join([*self._parts(metrics, step, seconds)]))

    def _parts(self, metrics: Mapping[str, Any], step: int, seconds: float) -> list[str]:
        first, before = self.start or (step, seconds)
        left = (seconds - before) / max(1, step - first) * (self.steps - step)
        parts = [f"step {step}/{self.steps}", f"loss {self.total['loss']:.3f}"]
        if "val_loss" in metrics:
            parts.append(f"validation {metrics['val_loss']:.3f}")
        parts += [f"lr {metrics['lr']:.1e}", f"{self.rate['tokens']:,.0f} tokens/s", f"left {_clock(left)}"]
        return [*parts, *(f"{name} {loss:.2f}" for name, loss in rows(self.losses.means()).items())]

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Journal:
    """metrics.jsonl, one object a line, and TensorBoard's events of a run, going on from step `start`."""

    def __init__(self, run_dir: Path, start: int = 0) -> None:
        self.path = run_dir / "metrics.jsonl"
        _keep_until(self.path, start)
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.tensorboard.close()

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Numbers that are not finite are written as null: JSON has none."""
        self.file.write(json.dumps(_finite(metrics), ensure_ascii=False) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            group = "validation" if name.startswith("val_") else "train"
            if isinstance(value, Mapping):
                for direction, loss in value.items():
                    self.tensorboard.add_scalar(f"{group}/{direction}", loss, metrics["step"])
            elif name != "step":
                self.tensorboard.add_scalar(f"{group}/{name}", value, metrics["step"])


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; none where there is no such file. ValueError: it is damaged."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or move it away to do without losses") from error


def until(journal: Sequence[Mapping[str, Any]], step: int | None) -> list[Mapping[str, Any]]:
    """The lines up to a checkpoint's step: the run may have gone on since."""
    return [line for line in journal if step is None or line["step"] <= step]


def configs_until(run: Path, step: int | None) -> list[tuple[Path, str]]:
    """The configs that trained a run up to a checkpoint's step, each with its name as of then: the last is config.yaml.

    Those before are ``config-until-<step>.yaml``.
    """
    found = sorted(run.glob("config-until-*.yaml"))
    before = [path for path in found if step is None or int(path.stem.rpartition("-")[2]) < step]
    last = found[len(before)] if len(before) < len(found) else run / "config.yaml"
    return [(path, path.name) for path in before] + ([(last, "config.yaml")] if last.is_file() else [])


def thinned(journal: Sequence[Mapping[str, Any]], points: int) -> list[dict[str, Any]]:
    """A run's lines as means over equal stretches of it: of the loss, of validation, and of each pair of modalities."""
    size = -(-len(journal) // points)
    return [_mean_line(journal[start : start + size]) for start in range(0, len(journal), size)]


def _mean_line(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    each = [by_pairs(line.get("directions") or {}) for line in lines]
    pairs = sorted({pair for losses in each for pair in losses})
    line: dict[str, Any] = {"step": lines[-1]["step"]}
    for name in ("loss", "val_loss"):
        values = [it[name] for it in lines if it.get(name) is not None]
        if values:
            line[name] = round(sum(values) / len(values), 4)
    found = {pair: [losses[pair] for losses in each if pair in losses] for pair in pairs}
    line["directions"] = {pair: round(sum(values) / len(values), 4) for pair, values in found.items()}
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines behind a step, which a run that was cut off will write again, and a last one cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
