"""One model for four tasks against a model made for each: on the same samples, and with the same compute.

    python -m benchmarks.specialists SECONDS [SEEDS] [--rows 4] [--shared] [--tasks captions,drawings] [--little]
        [key=value …]

For each seed:
- `shared`: one model trained on all four tasks for SECONDS, with `--rows` times as many rows in a step as the others:
  with 4, as many tokens for four tasks as theirs. `--shared` trains it alone, `--tasks` on some of them.
- `same samples`: the same model trained on one task alone, on as many of its samples as `shared` saw of it.
- `same compute`: the same model trained on one task alone for SECONDS.
- `peer`: what a library has for the task (`benchmarks.peers`), trained on the same samples alone for SECONDS.

`--little` asks what sharing gives a task with little data; `peer` is left out. On the demo's slice: French captions
from one drawing of each thing, French transcripts from a tenth of the recordings, beside English ones from all. On
`spoken`: Italian transcripts from a thirtieth of the recordings, beside Spanish ones from all.

Drawings are judged with the extra `eval`. All learn by a cosine over their budget. They are judged on the same held-out
samples: drawings in styles that were not trained on, and sentences, names, and pairs of name and style that were not.
Overrides are those of `anyxform train`.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from anyxform.cli.build import prepared
from anyxform.cli.conf import compose
from anyxform.cli.train import Run
from anyxform.data import Counts
from anyxform.dataset import Dataset, open_datasets
from anyxform.evaluate import MODEL, Item, evaluate
from anyxform.field import Direction, matches, pairs
from anyxform.modality import registry
from anyxform.pipeline import Pipeline
from anyxform.rows import Rows
from anyxform.selection import choose_items
from anyxform.sequence import Batch
from anyxform.train import averaged, train
from benchmarks.peers import PEERS, Peer
from modalities.image.judge import installed


@dataclass(frozen=True)
class Task:
    """A direction to train, and what is judged."""

    trained: str
    judged: str
    split: str
    metric: str
    datasets: tuple[str, ...]
    new_only: bool = False
    little: bool = False
    one_of: int = 1  # so many of its samples; more than 1: in a dataset of its own


STARTER = {
    "captions": Task("image>text:en", "image>text:en", "instance", "exact", ("emoji",), new_only=True),
    "drawings": Task("text:en>image", "text:en>image:twemoji", "instance", "retrieval", ("emoji",), new_only=True),
    "transcripts": Task("audio:fr*>text:fr", "audio:fr*>text:fr", "test", "cer", ("stamps", "prompts")),
    "translations": Task("text:en>text:fr", "text:en>text:fr", "test", "chrf", ("names", "emoji")),
}
DEMO = {
    "captions": Task("image>text:en", "image>text:en", "instance", "exact", ("pictures",), new_only=True),
    "drawings": Task("text:en>image", "text:en>image", "instance", "retrieval", ("pictures",), new_only=True),
    "transcripts": Task("audio:fr*>text:fr", "audio:fr*>text:fr", "instance", "exact", ("numbers",)),
    "translations": Task("text:en>text:fr", "text:en>text:fr", "instance", "exact", ("numbers",)),
}
LITTLE = {
    "captions": DEMO["captions"],
    "French captions": Task(
        "image:fxemoji>text:fr", "image>text:fr", "instance", "exact", ("pictures",), new_only=True, little=True
    ),
    "transcripts": Task("audio:en*>text:en", "audio:en*>text:en", "instance", "exact", ("numbers",)),
    "French transcripts": replace(DEMO["transcripts"], little=True, one_of=10),
}
LITTLE_SPOKEN = {
    "transcripts": Task("audio:es*>text:es", "audio:es*>text:es", "test", "cer", ("spoken",)),
    "Italian transcripts": Task(
        "audio:it*>text:it", "audio:it*>text:it", "test", "cer", ("spoken",), little=True, one_of=30
    ),
}
LIMIT = 300
OPTIONS = ("rows_per_step", "exit_every", "clip", "bf16", "exit_weight", "length_weight", "align_weight")
FINAL, BATCH, PEER_LR, PEER_WARMUP = 0.02, 32, 1e-3, 100


class Budget:
    """Seconds, or samples; how much of it is used decides the learning rate."""

    def __init__(self, *, seconds: float = math.inf, samples: float = math.inf) -> None:
        self.seconds, self.samples = seconds, samples
        self.seen = Counter[str]()
        self.begin()

    def begin(self) -> None:
        """Count seconds from here on: to open the data is no training."""
        self.began = time.perf_counter()

    def passed(self) -> float:
        return min(
            1.0, max((time.perf_counter() - self.began) / self.seconds, self.seen.total() / max(1, self.samples))
        )

    def rate(self, step: int, peak: float, warmup: int) -> float:
        warm = min(1.0, (step + 1) / warmup)
        return peak * warm * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * self.passed())))


Tasks = Mapping[str, Task]


def tasks_for(overrides: Sequence[str], little: bool = False) -> Tasks:
    """Those of the starter, or of the demo's slice of it."""
    datasets = compose("train", overrides)["data"]["datasets"]
    if little and "pictures" not in datasets and list(datasets) != ["spoken"]:
        raise ValueError("--little is made for the demo's slice and for spoken: add experiment=demo or data=spoken")
    if little:
        return LITTLE if "pictures" in datasets else LITTLE_SPOKEN
    return DEMO if "pictures" in datasets else STARTER


def with_few(config: dict[str, Any], tasks: Tasks) -> None:
    """Of a task that has one of so many samples, these alone, as often as all those of the others in its dataset."""
    data, datasets = config["data"], config["data"]["datasets"]
    for task in tasks.values():
        if task.one_of == 1:
            continue
        (name,) = task.datasets
        entry = datasets[name]
        (dataset,) = open_datasets({name: entry}, registry(), root=data["root"]).values()
        shards, weight = entry["shards"].format(split="train"), entry.get("weight", 1)
        keys = sorted(_keys(dataset, [task]))[:: task.one_of]
        datasets["little"] = _only(entry, [task]) | {"keys": keys, "shards": shards, "weight": weight}
        others = [it for it in tasks.values() if name in it.datasets and it != task]
        share = len(_keys(dataset, others)) / len(dataset)  # samples that fit no task are drawn as well, and skipped
        datasets[name] = _only(entry, others) | {"weight": weight / share if share else weight}


def _keys(dataset: Dataset, tasks: Sequence[Task]) -> list[str]:
    """The keys of samples that one of these tasks can be trained on."""
    return [
        dataset.samples[number].key
        for number in range(len(dataset))
        if any(matches(it, task.trained) for it in pairs(dataset.fields(number)) for task in tasks)
    ]


def _only(entry: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """A dataset's entry with the texts that these tasks ask for."""
    texts = {task.trained.partition(">")[2] for task in tasks}
    return dict(entry) | {"fields": {text: f"json.{text.replace(':', '.')}" for text in sorted(texts)}}


def opened(tasks: Tasks, overrides: Sequence[str], seed: int) -> Run:
    """A run on these tasks; where a sample has several of them, each is drawn equally often."""
    words = prepared([*overrides, "run_dir=runs/unsaved", f"seed={seed}"])
    config = compose("train", words)
    with_few(config, tasks)
    config["data"] |= {"directions": {task.trained: 1.0 for task in tasks.values()}, "hold_out": []}
    torch.manual_seed(seed)
    return Run(config, words)


def training_rows(run: Run) -> Rows:
    return run.data.rows("train", run.state.model, run.modalities, seed=run.config["seed"], pad=False)


def tasks_of(batch: Batch, tasks: Tasks) -> Counter[str]:
    """How many samples of each task a row holds."""
    starts, found = torch.tensor(batch.segments.starts), Counter[str]()
    for target in batch.targets.values():
        segments = torch.searchsorted(starts, target.label_index, right=True)
        pairs = torch.stack([segments, target.label_directions]).unique(dim=1)
        found.update(batch.directions[number] for number in pairs[1].tolist())
    counts = Counter[str]()
    for direction, number in found.items():
        name = next(n for n, it in tasks.items() if matches(Direction.parse(direction), it.trained))
        counts[name] += number
    return counts


def train_ours(tasks: Tasks, overrides: Sequence[str], seed: int, budget: Budget, rows_more: int = 1) -> Run:
    """One model on these tasks until the budget is used, with so many times the rows of the config in a step."""
    run = opened(tasks, overrides, seed)
    options, optim = run.config["train"], run.config["optim"]
    options["rows_per_step"] *= rows_more
    budget.begin()

    def rows() -> Iterator[tuple[Batch, Any]]:
        for batch, position in training_rows(run).from_position():
            budget.seen.update(tasks_of(batch, tasks))
            yield batch, position

    steps = train(
        run.state, rows(), steps=10**9, lr=lambda step: budget.rate(step, optim["lr"], optim["warmup"]),
        seed=seed, weights=options["loss_weights"], **{name: options[name] for name in OPTIONS},
    )  # fmt: skip
    for _ in steps:
        if budget.passed() == 1:
            break
    return run


def train_peer(name: str, task: Task, overrides: Sequence[str], seed: int, budget: Budget) -> tuple[Peer, Run]:
    """The library's architecture on the task's samples until the budget is used."""
    run = opened({name: task}, [*overrides, "data.condition_dropout=0"], seed)
    size, examples = run.config["model"], training_rows(run).examples
    torch.manual_seed(seed)
    peer = PEERS[name](run.modalities, size["dim"], size["depth"], size["num_heads"]).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=PEER_LR, betas=(0.9, 0.95), weight_decay=0.1)
    found = (example for example in (examples(index, Counts()) for index in count()) if example is not None)
    step = 0
    budget.begin()
    while budget.passed() < 1:
        batch = [next(found) for _ in range(BATCH)]
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(step, PEER_LR, PEER_WARMUP)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.config["train"]["bf16"]):
            loss = peer(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        budget.seen[name] += BATCH
        step += 1
    return peer.eval(), run


def held_out(task: Task, run: Run, overrides: Sequence[str]) -> list[Item]:
    """What the task is judged on, the same for every system."""
    config = compose("train", prepared(overrides))["data"]
    chosen = {name: config["datasets"][name] for name in task.datasets}
    datasets = open_datasets(chosen, run.modalities, root=config["root"], split=task.split)
    known = run.state.model.condition_ids.keys()
    return choose_items(
        datasets, run.modalities, patterns=[task.judged], limit=LIMIT, new_only=task.new_only,
        known=lambda direction: known >= set(direction.target.attributes),
    ).items  # fmt: skip


def answers(run: Run, items: Sequence[Item]) -> list[Any]:
    with averaged(run.state) as model:
        model.eval()
        found = Pipeline(model, run.modalities).answer([it.direction for it in items], [it.sources for it in items])
        model.train()
    return found


def written(peer: Peer, run: Run, items: Sequence[Item]) -> list[Any]:
    texts: list[Any] = []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        sources = [
            run.modalities[it.direction.sources[0].modality].preprocess(value) for it in some for value in it.sources
        ]
        texts += [run.modalities["text"].from_codes(codes) for codes in peer.write(sources)]
    return texts


def one_seed(tasks: Tasks, options: argparse.Namespace, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """Every system's metric on every task, with the gain of `shared` over each."""
    alone_too, seconds = not options.shared, options.seconds
    budget = Budget(seconds=seconds)
    shared = train_ours(tasks, overrides, seed, budget, options.rows)
    print(f"seed {seed}: shared took {shared.state.step} steps", flush=True)
    results: dict[str, Any] = {}
    for name, task in tasks.items():
        items = held_out(task, shared, overrides)
        systems = {MODEL: answers(shared, items)}
        samples = {"shared": budget.seen[name]}
        others: dict[str, Callable[[], Budget]] = {
            "same samples": lambda name=name: Budget(samples=budget.seen[name]),  # type: ignore[misc]
            "same compute": lambda: Budget(seconds=seconds),
        }
        for label, make in others.items() if alone_too and (task.little or not options.little) else ():
            own = make()
            systems[label] = answers(train_ours({name: task}, overrides, seed, own), items)
            samples[label] = own.seen.total()
        if name in PEERS and alone_too and not options.little:
            own = Budget(seconds=seconds)
            systems["peer"] = written(*train_peer(name, task, overrides, seed, own), items)
            samples["peer"] = own.seen.total()
        (row,) = evaluate(items, systems, shared.modalities, seed=seed).summary
        results[name] = {
            "metric": task.metric,
            "n": row.n,
            "samples": samples,
            "values": {("shared" if it == MODEL else it): vars(row.systems[it][task.metric]) for it in systems},
            "gain": {it: vars(against[task.metric].gain) for it, against in row.against.items()},
        }
        print(f"seed {seed}, {name}: {_line(results[name])}", flush=True)
    return results


def _line(result: dict[str, Any]) -> str:
    values = ", ".join(
        f"{name} {it['value']:.3f} [{it['low']:.3f}, {it['high']:.3f}] after {result['samples'][name]:,} samples"
        for name, it in result["values"].items()
    )
    return f"{result['metric']} of {result['n']}: {values}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("words", nargs="*", help="how many seeds (1), then overrides: key=value")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--tasks", help="of the four: names between commas (all)")
    parser.add_argument("--little", action="store_true")
    options = parser.parse_intermixed_args()
    overrides = [word for word in options.words if "=" in word]
    seeds = next((int(word) for word in options.words if "=" not in word), 1)
    tasks = tasks_for(overrides, options.little)
    chosen = options.tasks.split(",") if options.tasks else list(tasks)
    if unknown := set(chosen) - tasks.keys():
        parser.error(f"--tasks: there is no {', '.join(sorted(unknown))} among {', '.join(tasks)}")
    tasks = {name: tasks[name] for name in chosen}
    if any(task.metric == "retrieval" for task in tasks.values()) and not installed():
        parser.error("drawings need a judge: pip install 'anyxform[eval]', or leave them out by --tasks")
    found = [one_seed(tasks, options, overrides, seed) for seed in range(seeds)]
    print(json.dumps(vars(options) | {"seeds": found}))


if __name__ == "__main__":
    main()
