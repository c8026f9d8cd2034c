"""`anyxform demo --out DIR`: train a small model from nothing, judge it on what it never saw, and show it on a page."""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyxform.cli.arguments import Parser
from anyxform.cli.own import clear

NAME = "demo"
PARTS = ("run", "data", "media", "index.html", "report.json", "heatmap.png")
STARTER = Path("data/starter")
DRAWS = 3
"""Different drawings of the same words on the page."""
JUDGED: dict[str, dict[str, int]] = {
    "pictures": {"image>text": 132, "text:en>image": 99, "text:fr>image": 99},
    "numbers": {
        **{f"audio:{language}-phone>text:{language}": 40 for language in ("en", "fr")},
        "audio:fr-phone>text:en": 20,
        "audio:en-phone>text:fr": 20,
        "text:en>audio:en-phone": 40,
        "text:fr>audio:fr-phone": 10,
        "text>text": 20,
    },
}
"""What is judged, on how many items of each direction. The names of pictures are in training, so none is translated."""


def main(arguments: list[str]) -> int:
    """Parse the arguments and run; returns the exit code."""
    parser = Parser(
        prog="anyxform demo",
        description="Train a small model from nothing on a slice of the starter, judge it, and write index.html.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the folder to write (default: demo)")
    parser.add_argument("--minutes", type=float, default=7, help="of training (default: 7)")
    parser.add_argument("--steps", type=int, help="of training, instead of as many as fit into the minutes")
    parser.add_argument("--starter", type=Path, default=STARTER, help="where the starter's shards are")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf or (options.steps is not None and options.steps < 1):
        raise ValueError("--minutes and --steps must be numbers above 0")
    if not (options.starter / "stats.json").is_file():
        raise ValueError(
            f"there is no starter dataset in {options.starter}: run this in the project's folder, give --starter, "
            "or build it: anyxform data starter data/starter"
        )
    return _Demo(options).run()


class _Demo:
    """One run of the demo: its parts in order."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.began = time.perf_counter()
        self.command = shlex.join(["anyxform", NAME, "--out", str(options.out), "--seed", str(options.seed)])

    def say(self, text: str) -> None:
        print(f"[{_clock(time.perf_counter() - self.began)}] {text}", file=sys.stderr, flush=True)

    def run(self) -> int:
        from anyxform.demo.slice import write_slice

        self.say("choosing a slice of the starter: some thirty things, and numbers in two languages")
        clear(self.out, PARTS, NAME)
        counts = write_slice(self.options.starter, self.out / "data", self.options.seed)
        self.say(", ".join(f"{name} {count}" for name, count in counts.items()))
        self.say(f"training from nothing for about {self.options.minutes:g} minutes")
        if code := self._train():  # interrupted
            return code
        self.say("judging on samples that were not trained on")
        page = self._show()
        self.say(f"done: open {page}")
        return 0

    def _overrides(self) -> list[str]:
        from anyxform.cli.info import fast_bf16

        steps, minutes = self.options.steps, self.options.minutes
        return [
            f"experiment={NAME}",
            f"data.root={self.out / 'data'}",
            f"tokenizers={self.options.starter / 'tokenizers'}",
            f"run_dir={self.out / 'run'}",
            f"seed={self.options.seed}",
            f"train.steps={steps or 10**6}",
            f"train.minutes={0 if steps else minutes}",
            f"train.bf16={str(fast_bf16()).lower()}",
        ]

    def _train(self) -> int:
        import torch

        from anyxform.cli.conf import compose
        from anyxform.cli.train import Run

        torch.manual_seed(self.options.seed)
        overrides = self._overrides()
        return Run(compose("train", overrides), overrides).train()

    def _show(self) -> Path:
        from anyxform.assess import assess, training_set
        from anyxform.checkpoint import write_json
        from anyxform.cli.conf import compose
        from anyxform.cli.eval import tell
        from anyxform.curve import training_curve
        from anyxform.dataset import open_datasets
        from anyxform.demo.exhibits import choose_cards
        from anyxform.demo.media import Gallery
        from anyxform.demo.page import Contents, render
        from anyxform.heatmap import draw_heatmap
        from anyxform.pipeline import load
        from anyxform.selection import choose_items

        pipeline = load(self.out / "run")
        data = compose("train", self._overrides())["data"]
        held_out, training = (
            open_datasets(data["datasets"], pipeline.modalities, root=data["root"], split=split)
            for split in ("instance", "train")
        )
        attributes = pipeline.model.condition_ids.keys()
        items = []
        for name, patterns in JUDGED.items():
            for pattern, limit in patterns.items():
                chosen = choose_items(
                    {name: held_out[name]},
                    pipeline.modalities,
                    patterns=[pattern],
                    limit=limit,
                    seed=self.options.seed,
                    known=lambda direction: attributes >= set(direction.target.attributes),
                )
                items += chosen.items
        self.say("reading the training data for the baselines")
        known = training_set(pipeline, training, items)
        done = assess(pipeline, items, known, seed=self.options.seed, say=self.say)
        settings = {"split": "instance", "seed": self.options.seed}
        write_json(self.out / "report.json", {"settings": settings, **done.report.to_dict()})
        tell(done.report.summary, "on samples that were not trained on")
        self._heatmap(draw_heatmap, done.report.directions)
        cards = choose_cards(items, pipeline.modalities, seed=self.options.seed)
        answers = self._draws(pipeline, items, done.answers["model"], cards)
        journal = [json.loads(line) for line in (self.out / "run" / "metrics.jsonl").read_text().splitlines()]
        contents = Contents(
            facts=self._facts(pipeline.facts["facts"]),
            command=self.command,
            cards=cards,
            items=items,
            answers=answers,
            summary=done.report.summary,
            directions=done.report.directions,
            curve=training_curve(journal),
            notes=NOTES,
            **self._starter(),
        )
        page = self.out / "index.html"
        page.write_text(render(contents, pipeline.modalities, Gallery(self.out / "media")), "utf-8", "backslashreplace")
        return page

    def _heatmap(self, draw: Any, rows: Any) -> None:
        try:
            draw(rows, self.out / "heatmap.png", "anyxform demo")
        except ValueError as error:
            self.say(str(error))

    def _draws(
        self, pipeline: Any, items: Sequence[Any], first: Sequence[Any], cards: Mapping[Any, Sequence[Any]]
    ) -> dict[int, list[Any]]:
        """The judged answer of every item that is shown, and more drawings of those that are drawn."""
        shown = [number for group in cards.values() for card in group for number in card.items]
        answers = {number: [first[number]] for number in shown}
        drawn = [n for n in shown if pipeline.modalities[items[n].direction.target.modality].position_axes == 2]
        for draw in range(1, DRAWS):
            more = pipeline.answer(
                [items[n].direction for n in drawn], [items[n].sources for n in drawn], seed=1000 * draw
            )
            for number, value in zip(drawn, more):
                answers[number].append(value)
        return answers

    def _starter(self) -> dict[str, Any]:
        """What the page shows of the model that ships."""
        from anyxform.cli.conf import compose
        from anyxform.demo.showcase import showcase
        from anyxform.pipeline import load

        self.say("asking the starter, which ships, as well")
        starter = load("starter")
        facts, configs = starter.facts["facts"], compose("train", ["data=starter"])["data"]["datasets"]
        try:
            shown = showcase(starter, configs, self.options.starter, seed=self.options.seed)
        except ValueError as error:  # of a shard that only this needs; what was trained and judged is not lost
            self.say(f"the page does without it: {error}")
            return {}
        return {
            "starter": shown,
            "starter_facts": f"{facts['parameters'] / 1e6:.1f} M parameters, trained before on all of the dataset: "
            "drawings, recordings and names of many languages.",
        }

    def _facts(self, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            ("parameters", f"{facts['parameters'] / 1e6:.1f} M"),
            ("training", f"{facts['seconds'] / 60:.1f} minutes, {facts['steps']:,} steps"),
            ("tokens", f"{facts['tokens']:,}"),
            ("device", str(facts["device"])),
            ("so far", f"{(time.perf_counter() - self.began) / 60:.1f} minutes in all"),
        ]


NOTES = [
    "Unseen pictures: of every thing the style openmoji, and one of twemoji, noto and emojione by turns; other "
    "drawings of the same things were trained on. A drawing is asked for in the style that the thing lacks in "
    "training. Unseen recordings and translations: number strings that are not in training; their digits are real "
    "recordings, joined as telephone systems do it, and the same ten recordings a language make up the training "
    "strings.",
    "Tokenizers (subwords, codes of pictures and of speech) were trained before, on the training split of the starter; "
    "the shared Transformer was trained from nothing.",
    "Data: emoji of Twitter, Google, OpenMoji, Emoji One and Mozilla, names by Unicode CLDR, telephone prompts of "
    "Asterisk; licences in data/starter/ATTRIBUTION.md.",
]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
