"""Drafting with the first layers and leaving early, on held-out items of the starter: what is saved, and what it costs.

    python -m benchmarks.effort [LIMIT] [CHECKPOINT]

Needs the extra `eval`. For each direction it decodes up to LIMIT items one by one: plainly, with drafts, and at several
efforts; transcripts also as the recordings spell them. Operations are counted on the first `COUNTED` items while they
are done, those of the front end and the prefix included, and divided by the tokens of the plain answers. Drafts are
timed against plain decoding in alternation. On a busy machine give it one thread (OMP_NUM_THREADS=1). Prints tables in
Markdown, writes docs/images/effort.png, and ends with one line of JSON.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from anyxform.estimate import operations
from anyxform.evaluate import MODEL, Item, evaluate
from anyxform.generate import generate
from anyxform.likelihood import likelihoods
from anyxform.pipeline import Pipeline, load
from anyxform.request import Generated
from anyxform.sampling import Sampling
from anyxform.selection import choose_items
from benchmarks import starter
from benchmarks.compare import Comparison, calibration, compare, report

PICTURE = Path("docs/images/effort.png")
EFFORTS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
DRAFTS = ((1, 2), (2, 2), (4, 3))
"""Tokens drafted, and layers that draft."""
SPELT = {"align_weight": 1.0}
COUNTED, TIMED = 10, 10
"""Items whose operations are counted, and that are timed."""


@dataclass(frozen=True)
class Part:
    """What is decoded: a share of the limit of items, by split, dataset and directions; `metric` judges the answers."""

    name: str
    split: str
    dataset: str
    directions: Sequence[str]
    metric: str
    share: float


SPOKEN = [f"audio:{it}*>text:{it}" for it in ("en", "es", "fr", "it", "ru")]
PARTS = (
    Part("captions", "instance", "emoji", ["image:openmoji>text:en"], "chrf", 1.0),
    Part("transcripts", "instance", "prompts", SPOKEN, "cer", 0.5),
    Part("translations", "test", "names", ["text:fr>text:en"], "chrf", 0.5),
    Part("drawings", "train", "emoji", ["text:en>image:noto"], "ssim", 0.1),
    Part("speech", "instance", "prompts", ["text:en>audio:en-phone"], "lsd", 0.1),
)


@dataclass(frozen=True)
class Measured:
    """Of one way to decode a part: quality, and what was done for each token of the answers."""

    part: str
    n: int
    options: dict[str, float]
    metric: float
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
        self.masked = ax.modalities[self.requests[0].target.modality].decoding == "masked"
        learnt = [it.split(">")[0].partition(":")[0] for it in ax.facts.get("facts", {}).get("aligned", ())]
        self.spells = part.directions[0].partition(":")[0] in learnt
        self.plain = self.answers(Sampling())
        self.sureness = [it.logprob / (len(it.codes) + 1) for it in self.plain]

    def answers(self, options: Sampling, first: int | None = None) -> list[Generated]:
        return generate(self.ax.model, self.ax.modalities, self.requests[:first], options, batch_size=1)

    def measured(self, **given: float) -> Measured:
        options = Sampling(**given)  # type: ignore[arg-type]
        found = self.answers(options)
        with operations() as counted:
            self.answers(options, COUNTED)
        middle = median(self.sureness)
        halves = [[it for it, p in zip(found, self.sureness) if (p >= middle) == sure] for sure in (True, False)]
        codes, length = [it.codes for it in found], max(1, _tokens(found))
        return Measured(
            part=self.part.name,
            n=len(found),
            options=given,
            metric=self._quality(found),
            loglik=sum(likelihoods(self.ax.model, self.ax.modalities, self.requests, codes)) / length,
            same=sum(one.codes.equal(other.codes) for one, other in zip(found, self.plain)) / len(found),
            mega_ops=counted.get_total_flops() / _tokens(self.plain[:COUNTED]) / 1e6,
            layers=self._layers(found),
            sure=self._layers(halves[0]),
            unsure=self._layers(halves[1]),
            accepted=sum(it.accepted for it in found) / max(1, sum(it.drafted for it in found)),
        )

    def timed(self, **given: float) -> Comparison:
        """Tokens a second with these options, and without."""
        sides = [Sampling(**given), Sampling()]  # type: ignore[arg-type]
        ours, peer = (lambda it=it: float(_tokens(self.answers(it, TIMED))) for it in sides)
        return compare(f"{self.part.name} {given}", ours, peer, unit="tokens/s", pairs=7, warmup=1)

    def _quality(self, found: Sequence[Generated]) -> float:
        modality = self.ax.modalities[self.requests[0].target.modality]
        values = [modality.from_codes(it.codes) for it in found]
        (row,) = evaluate(self.items, {MODEL: values}, self.ax.modalities, judges=False).summary
        return row.systems[MODEL][self.part.metric].value

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
    """Quality by the whole model against operations, both of all layers, one line a part."""
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(it.part for it in results)):
        own = [it for it in results if it.part == name and it.options != SPELT]
        shares = [it.mega_ops / own[0].mega_ops for it in own]
        loss = [it.loglik - own[0].loglik for it in own]
        axes.plot(shares, loss, "o-", ms=3, lw=1, color=f"C{number}", label=name)
    axes.set_xlabel("operations a token, of those with all layers")
    axes.set_ylabel("log-likelihood a token, less that with all layers")
    axes.legend(fontsize=8)
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
