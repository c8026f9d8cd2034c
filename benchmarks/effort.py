"""Drafting with the first layers and leaving early, on held-out items of the starter: what is saved, and what it costs.

    python -m benchmarks.effort [LIMIT] [CHECKPOINT]

Needs the extra `eval`. For each direction it decodes up to LIMIT items one by one: plainly, with drafts, and at several
efforts. Operations are counted while they are done, those of the prefix included; what is timed is drafts against plain
decoding, in alternation. Writes docs/images/effort.png.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from anyxform.estimate import operations
from anyxform.evaluate import MODEL, Item, evaluate
from anyxform.generate import Generated, generate
from anyxform.pipeline import Pipeline, load
from anyxform.sampling import Sampling
from anyxform.selection import choose_items
from benchmarks import starter
from benchmarks.compare import Comparison, calibration, compare, report

PICTURE = Path("docs/images/effort.png")
DRAFTS = ((2, 1), (2, 2), (4, 2), (4, 3))
"""Tokens drafted, and layers that draft."""
EFFORTS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05, 0.0)
TIMED = 24
"""Items that are timed."""


@dataclass(frozen=True)
class Part:
    """What is decoded: items of a split and datasets, in directions; `metric` judges the answers."""

    name: str
    split: str
    datasets: tuple[str, ...]
    directions: tuple[str, ...]
    metric: str
    share: float = 1.0
    """Of the limit."""


PARTS = (
    Part("captions", "instance", ("emoji",), ("image:openmoji>text:en",), "cer"),
    Part(
        "captions, other languages",
        "instance",
        ("emoji",),
        ("image:openmoji>text:fr", "image:openmoji>text:es"),
        "cer",
        0.5,
    ),
    Part("transcripts", "instance", ("prompts", "stamps"), ("audio:*>text:*",), "cer", 0.1),
    Part("translations", "test", ("names",), ("text:fr>text:en", "text:es>text:en", "text:en>text:fr"), "chrf", 0.34),
    Part("drawings", "train", ("emoji",), ("text:en>image:noto",), "ssim", 0.1),
    Part("speech", "instance", ("prompts",), ("text:en>audio:en-phone",), "lsd", 0.1),
)


@dataclass(frozen=True)
class Measured:
    """Of one way to decode the items of a part: quality, and what was done for each token of the answers."""

    part: str
    metric: str
    value: float
    same: float
    """Of the answers, those that plain decoding gives."""
    mega_ops: float
    layers: float
    accepted: float
    options: dict[str, float]
    n: int


def chosen(ax: Pipeline, part: Part, limit: int) -> list[Item]:
    found = starter.datasets(dict(ax.modalities), part.split)
    some = {name: found[name] for name in part.datasets}
    new = part.split == "instance"
    directions = list(part.directions)
    return choose_items(
        some, ax.modalities, patterns=directions, limit=max(1, round(part.share * limit)), new_only=new
    ).items


def answered(ax: Pipeline, items: Sequence[Item], options: Sampling) -> list[Generated]:
    requests = [ax.request(item.direction, item.sources) for item in items]
    return generate(ax.model, ax.modalities, requests, options, batch_size=1)


def measured(ax: Pipeline, part: Part, items: Sequence[Item], plain: Sequence[Generated], **options: float) -> Measured:
    with operations() as counted:
        found = answered(ax, items, Sampling(**options))  # type: ignore[arg-type]
    values = [ax.modalities[it.direction.target.modality].from_codes(made.codes) for it, made in zip(items, found)]
    (row,) = evaluate(items, {MODEL: values}, ax.modalities, judges=False).summary
    tokens, depth = sum(len(it.codes) for it in found), len(ax.model.blocks)
    layers = sum(depth * len(it.codes) if it.layers is None else float(it.layers.sum()) for it in found)
    drafted, accepted = (sum(getattr(it, name) for it in found) for name in ("drafted", "accepted"))
    same = sum(one.codes.equal(other.codes) for one, other in zip(found, plain)) / len(found)
    return Measured(
        part.name, part.metric, row.systems[MODEL][part.metric].value, same,
        counted.get_total_flops() / tokens / 1e6, layers / tokens, accepted / max(1, drafted), options, len(items),
    )  # fmt: skip


def timed(ax: Pipeline, part: Part, items: Sequence[Item], **options: float) -> Comparison:
    """Tokens a second with these options and without."""

    def rate(chosen: Sampling) -> float:
        return float(sum(len(it.codes) for it in answered(ax, items[:TIMED], chosen)))

    name = f"{part.name}, {options}"
    ours = Sampling(**options)  # type: ignore[arg-type]
    return compare(name, lambda: rate(ours), lambda: rate(Sampling()), unit="tokens/s", pairs=7, warmup=1)


def draw(results: Sequence[Measured], path: Path) -> None:
    """Quality against operations, both relative to all layers, one line a part."""
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(it.part for it in results)):
        own = [it for it in results if it.part == name]
        whole = own[0]
        axes.plot(
            [it.mega_ops / whole.mega_ops for it in own], [it.value / whole.value for it in own], "o-", ms=3, lw=1,
            color=f"C{number}", label=f"{name}: {whole.metric}",
        )  # fmt: skip
    axes.axhline(1, lw=0.5, color="grey")
    axes.set_xlabel("operations a token, of those with all layers")
    axes.set_ylabel("metric, of that with all layers")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(limit: int, checkpoint: str) -> None:
    ax, before = load(checkpoint, device="cpu"), calibration()
    efforts, drafts, times = list[Measured](), list[Measured](), list[Comparison]()
    for part in PARTS:
        items = chosen(ax, part, limit)
        plain = answered(ax, items, Sampling())
        for effort in EFFORTS:
            efforts.append(it := measured(ax, part, items, plain, effort=effort))
            print(
                f"{part.name} ({it.n}), effort {effort}: {part.metric} {it.value:.3f}, same {it.same:.2f}, "
                f"{it.layers:.2f} layers and {it.mega_ops:.1f} M operations a token",
                flush=True,
            )
        if ax.modalities[items[0].direction.target.modality].decoding == "masked":
            continue
        for draft, layers in DRAFTS:
            drafts.append(it := measured(ax, part, items, plain, draft=draft, draft_layers=layers))
            times.append(timed(ax, part, items, draft=draft, draft_layers=layers))
            print(
                f"{part.name}, {draft} drafted by {layers} layers: accepted {it.accepted:.2f}, same {it.same:.3f}, "
                f"{it.mega_ops:.1f} M operations a token; {times[-1]}",
                flush=True,
            )
    draw(efforts, PICTURE)
    report(
        times,
        before,
        efforts=json.dumps([asdict(it) for it in efforts]),
        drafts=json.dumps([asdict(it) for it in drafts]),
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 300, words[1] if len(words) > 1 else "starter")
