"""Drafting with the first layers and leaving early, on held-out items of the starter: what is saved, and what it costs.

    python -m benchmarks.effort [LIMIT] [CHECKPOINT]

Needs the extra `eval`. For each direction it decodes up to LIMIT items one by one: plainly, with drafts, and at several
efforts; transcripts also as the recordings spell them. Operations are counted on the first items while they are done,
those of the front end and the prefix included, and divided by the tokens of the plain answers. Drafts are timed against
plain decoding in alternation. On a busy machine give it one thread (OMP_NUM_THREADS=1). Prints tables in Markdown,
writes docs/images/effort.png, and ends with one line of JSON.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from anyxform.estimate import operations
from anyxform.evaluate import MODEL, Item, evaluate
from anyxform.generate import generate
from anyxform.likelihood import likelihoods
from anyxform.modality import Decoding
from anyxform.pipeline import Pipeline, load
from anyxform.request import Generated
from anyxform.sampling import Sampling
from anyxform.selection import choose_items
from benchmarks import starter
from benchmarks.compare import Comparison, calibration, compare, report

PICTURE = Path("docs/images/effort.png")
EFFORTS = (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
DRAFTS = ((1, 2), (2, 2), (4, 3))
"""Tokens drafted, and layers that draft."""
SPELT = {"align_weight": 1.0}
FIRST, TOKENS = 10, 200
"""Items whose operations are counted, and that are timed: so many, fewer where they have more tokens together."""
GOAL_LOSS, GOAL_SHARE = 1, 50
"""In per cent: of quality, and of the operations."""


@dataclass(frozen=True)
class Part:
    """What is decoded: a share of the limit of items, by split, dataset and directions; `metric` judges the answers,
    one of the independent judge's where they are `judged`. `decoding`: other than the modality's own.
    """

    name: str
    split: str
    dataset: str
    directions: Sequence[str]
    metric: str
    share: float
    judged: bool = False
    decoding: Decoding | None = None


SPOKEN = [f"audio:{it}*>text:{it}" for it in ("en", "es", "fr", "it", "ru")]
DRAWN = ["text:en>image:noto"]
PARTS = (
    Part("captions", "instance", "emoji", ["image:openmoji>text:en"], "chrf", 1.0),
    Part("transcripts", "instance", "prompts", SPOKEN, "cer", 0.5),
    Part("translations", "test", "names", ["text:fr>text:en"], "chrf", 0.5),
    Part("drawings", "train", "emoji", DRAWN, "retrieval", 0.3, judged=True),
    Part("drawings, left to right", "train", "emoji", DRAWN, "retrieval", 0.15, judged=True, decoding="autoregressive"),
    Part("speech", "instance", "prompts", ["text:en>audio:en-phone"], "judge_cer", 0.2, judged=True),
)


@dataclass(frozen=True)
class Measured:
    """Of one way to decode a part: quality, and what was done for each token of the answers."""

    part: str
    n: int
    options: dict[str, float]
    metric: float
    gain: float
    """Of the metric against plain decoding, in per cent of it; a loss is below 0, whatever way the metric counts."""
    loglik: float
    """By all layers, in nats a token."""
    same: float
    """Of the answers, those that plain decoding gives."""
    mega_ops: float
    """For each token of plain decoding's answers."""
    layers: float
    sure: float
    unsure: float
    """Layers a token of the half of answers that plain decoding is surer of, and of the other half."""
    accepted: float
    """Of the drafts."""


class Decoder:
    """A part's items, and plain decoding's answers to hold others against."""

    def __init__(self, ax: Pipeline, part: Part, limit: int) -> None:
        self.ax, self.part, self.depth = ax, part, len(ax.model.blocks)
        self.items = _chosen(ax, part, max(2, round(part.share * limit)))
        self.requests = [ax.request(item.direction, item.sources) for item in self.items]
        self.modality = ax.modalities[self.requests[0].target.modality]
        self.masked = (part.decoding or self.modality.decoding) == "masked"
        learnt = [it.split(">")[0].partition(":")[0] for it in ax.facts.get("facts", {}).get("aligned", ())]
        self.spells = part.directions[0].partition(":")[0] in learnt
        self.values = dict[bytes, Any]()
        self.plain = self.answers(self.sampling({}))
        self.quality = self._quality(self.plain)
        tokens = accumulate(len(it.codes) for it in self.plain[:FIRST])
        self.first = max(2, sum(count <= TOKENS for count in tokens))
        self.sureness = [it.logprob / (len(it.codes) + 1) for it in self.plain]

    def sampling(self, given: Mapping[str, float]) -> Sampling:
        return Sampling(decoding=self.part.decoding, **given)  # type: ignore[arg-type]

    def answers(self, options: Sampling, first: int | None = None) -> list[Generated]:
        return generate(self.ax.model, self.ax.modalities, self.requests[:first], options, batch_size=1)

    def measured(self, **given: float) -> Measured:
        options = self.sampling(given)
        found = self.answers(options)
        with operations() as counted:
            self.answers(options, self.first)
        metric, less = self._quality(found), self.part.metric in self.modality.lower_is_better
        middle = median(self.sureness)
        halves = [[it for it, p in zip(found, self.sureness) if (p >= middle) == sure] for sure in (True, False)]
        codes, length = [it.codes for it in found], max(1, _tokens(found))
        return Measured(
            part=self.part.name,
            n=len(found),
            options=given,
            metric=metric,
            gain=100 * (-1 if less else 1) * (metric - self.quality) / self.quality,
            loglik=sum(self._likelihoods(codes)) / length,
            same=sum(one.codes.equal(other.codes) for one, other in zip(found, self.plain)) / len(found),
            mega_ops=counted.get_total_flops() / _tokens(self.plain[: self.first]) / 1e6,
            layers=self._layers(found),
            sure=self._layers(halves[0]),
            unsure=self._layers(halves[1]),
            accepted=sum(it.accepted for it in found) / max(1, sum(it.drafted for it in found)),
        )

    def timed(self, **given: float) -> Comparison:
        """Tokens a second with these options, and without."""
        sides = [self.sampling(given), self.sampling({})]
        ours, peer = (lambda it=it: float(_tokens(self.answers(it, self.first))) for it in sides)
        return compare(f"{self.part.name} {given}", ours, peer, unit="tokens/s", pairs=7, warmup=1)

    def _quality(self, found: Sequence[Generated]) -> float:
        values = [self._value(it.codes) for it in found]
        (row,) = evaluate(self.items, {MODEL: values}, self.ax.modalities, judges=self.part.judged).summary
        return row.systems[MODEL][self.part.metric].value

    def _value(self, codes: Tensor) -> Any:
        """Made once: phases are guessed, and rounding is enough for the same codes to sound a little different."""
        key = codes.numpy().tobytes()
        if key not in self.values:
            self.values[key] = self.modality.from_codes(codes)
        return self.values[key]

    def _likelihoods(self, codes: Sequence[Tensor]) -> list[float]:
        return likelihoods(self.ax.model, self.ax.modalities, self.requests, codes, decoding=self.part.decoding)

    def _layers(self, found: Sequence[Generated]) -> float:
        return sum(self.depth * len(it.codes) if it.layers is None else float(it.layers.sum()) for it in found) / max(
            1, _tokens(found)
        )


def _chosen(ax: Pipeline, part: Part, limit: int) -> list[Item]:
    dataset = {part.dataset: starter.datasets(dict(ax.modalities), part.split)[part.dataset]}
    return choose_items(
        dataset, ax.modalities, patterns=part.directions, limit=limit, new_only=part.split == "instance"
    ).items[:limit]


def _tokens(found: Sequence[Generated]) -> int:
    return sum(len(it.codes) for it in found)


def tell(efforts: Sequence[Measured], drafts: Sequence[tuple[Measured, Comparison]]) -> None:
    """Both tables."""
    metrics = {part.name: part.metric for part in PARTS}
    whole = {it.part: it for it in reversed(efforts)}
    print(
        "\n| direction | effort | quality | log-likelihood | same answers | layers | surer, other half | operations |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for it in efforts:
        share, spelt = it.mega_ops / whole[it.part].mega_ops, it.options == SPELT
        layers = "– | –" if spelt else f"{it.layers:.2f} | {it.sure:.2f}, {it.unsure:.2f}"
        print(
            f"| {it.part} ({it.n}) | {'spelling alone' if spelt else format(it.options['effort'], 'g')} "
            f"| {metrics[it.part]} {it.metric:.3f} | {it.loglik:.3f} | {it.same:.0%} | {layers} "
            f"| {it.mega_ops:.1f} M, {share:.0%} |"
        )
    print("\n| direction | drafted, by layers | accepted | same answers | operations | tokens/s, against plain |")
    print("| --- | --- | --- | --- | --- | --- |")
    for it, time in drafts:
        share = it.mega_ops / whole[it.part].mega_ops
        print(
            f"| {it.part} ({it.n}) | {it.options['draft']:g}, {it.options['draft_layers']:g} | {it.accepted:.0%} "
            f"| {it.same:.0%} | {it.mega_ops:.1f} M, {share:.0%} | {time.ratio:.2f} [{time.low:.2f}, {time.high:.2f}] |"
        )


def draw(results: Sequence[Measured], path: Path) -> None:
    """A panel a part: its metric against operations, both of all layers, with the goal's two lines."""
    names, metrics = list(dict.fromkeys(it.part for it in results)), {part.name: part.metric for part in PARTS}
    figure = Figure(figsize=(10, 2.9 * -(-len(names) // 3)), dpi=130, layout="constrained")
    panels = figure.subplots(-(-len(names) // 3), 3, squeeze=False).flatten()
    for axes, name in zip(panels, names):
        own = [it for it in results if it.part == name and it.options != SPELT]
        shares = [100 * it.mega_ops / own[0].mega_ops for it in own]
        axes.axhline(-GOAL_LOSS, color="0.6", lw=0.8, ls="--")
        axes.axvline(GOAL_SHARE, color="0.6", lw=0.8, ls="--")
        axes.plot(shares, [it.gain for it in own], "o-", ms=4, lw=1)
        for share, it in zip(shares, own):
            axes.annotate(f"{it.options['effort']:g}", (share, it.gain), (3, 4), textcoords="offset points", fontsize=7)
        axes.set_yscale("symlog", linthresh=2)  # a loss of 1 % and one of 90 % are both to be seen
        axes.set(
            xlim=(40, 115),
            xticks=(40, 60, 80, 100),
            ylim=(1.5 * min(-2, *(it.gain for it in own)), 2 * max(1, *(it.gain for it in own))),
        )
        axes.yaxis.set_major_formatter("{x:+g} %")
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_title(f"{name} ({own[0].n}): {metrics[name]}", fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("operations a token, of those with all layers; numbers: effort; dashed: the goal", fontsize=9)
    figure.supylabel("gain in the metric (a loss is below 0)", fontsize=9)
    figure.savefig(path)


def main(limit: int, checkpoint: str) -> None:
    ax, before = load(checkpoint, device="cpu"), calibration()
    efforts, drafts = list[Measured](), list[tuple[Measured, Comparison]]()
    for part in PARTS:
        decoder = Decoder(ax, part, limit)
        for given in [{"effort": it} for it in EFFORTS] + [SPELT] * decoder.spells:
            efforts.append(decoder.measured(**given))
            print(efforts[-1], file=sys.stderr, flush=True)
        for draft, layers in () if decoder.masked else DRAFTS:
            given = {"draft": draft, "draft_layers": layers}
            drafts.append((decoder.measured(**given), decoder.timed(**given)))
            print(*drafts[-1], file=sys.stderr, flush=True)
    draw(efforts, PICTURE)
    tell(efforts, drafts)
    ways = [asdict(it) for it in [*efforts, *(it for it, _ in drafts)]]
    report([it for _, it in drafts], before, ways=ways)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 100, words[1] if len(words) > 1 else "starter")
