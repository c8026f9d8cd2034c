"""A page of samples as training draws them, with their directions, and of how often each direction comes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from anyxform.dataset import Dataset, Reader
from anyxform.demo.media import Gallery, document
from anyxform.directions import Directions
from anyxform.field import Direction, Field
from anyxform.modality import Modality
from anyxform.order import Order, rng


@dataclass(frozen=True)
class Drawn:
    """What training has at an index: a sample, its fields, and the direction that was drawn for it, if any fits."""

    dataset: str
    where: str
    fields: Mapping[Field, Reader]
    direction: Direction | None
    error: str = ""

    @property
    def outcome(self) -> str:
        """The direction, or why there is none."""
        return str(self.direction) if self.direction else "broken" if self.error else "no direction fits"


def draw(
    datasets: Mapping[str, Dataset],
    modalities: Mapping[str, Modality],
    directions: Directions,
    order: Order,
    count: int,
) -> Iterator[Drawn]:
    """The first `count` samples of a training in this order."""
    for index in range(count):
        place = order[index]
        dataset = datasets[place.dataset]
        sample = dataset.samples[place.number]
        where = f"{sample.shard}: {sample.key}"
        try:
            fields = {f: read for f, read in dataset.fields(place.number).items() if f.modality in modalities}
        except ValueError as error:
            yield Drawn(place.dataset, where, {}, None, str(error).removeprefix(f"{where}: "))
            continue
        first, second = rng(place.seed).random(8)[:2].tolist()  # as training does
        yield Drawn(place.dataset, where, fields, directions.draw(fields, first, second))


def page(
    datasets: Mapping[str, Dataset],
    modalities: Mapping[str, Modality],
    drawn: Sequence[Drawn],
    samples: int,
    gallery: Gallery,
    title: str,
) -> str:
    """The whole page as HTML, with the first `samples` of what was drawn as cards."""
    cards = "".join(_card(it, modalities, gallery) for it in drawn[:samples])
    body = f"""<header><p class="brand">anyxform</p><h1>{escape(title)}</h1></header>
<main>
<section><h2>Datasets</h2>{_datasets(datasets, drawn)}</section>
<section><h2>Samples</h2>
<p class="lead">The first {min(samples, len(drawn))} that training draws, each with what goes in, what is to come out,
and what else it has.</p><div class="cards">{cards}</div></section>
<section><h2>Directions</h2>
<p class="lead">How often each comes among the first {len(drawn):,} samples.</p>{_directions(drawn)}</section>
</main>"""
    return document(title, body)


def _datasets(datasets: Mapping[str, Dataset], drawn: Sequence[Drawn]) -> str:
    drawn_of = Counter(it.dataset for it in drawn)
    rows = []
    for name, dataset in datasets.items():
        fields = sorted({str(field) for fields in dataset.kinds() for field in fields})
        numbers = (f"{len(dataset.samples.shards):,}", f"{len(dataset):,}", f"{drawn_of[name] / len(drawn):.1%}")
        rows.append([name, *numbers, ", ".join(fields), "; ".join(dataset.damage[:3]) or "none"])
    return _table(["dataset", "shards", "samples", "drawn", "fields", "damage"], rows)


def _directions(drawn: Sequence[Drawn]) -> str:
    counts = Counter(it.outcome for it in drawn)
    return _table(["direction", "share"], [[name, f"{n / len(drawn):.1%}"] for name, n in counts.most_common()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _card(drawn: Drawn, modalities: Mapping[str, Modality], gallery: Gallery) -> str:
    sources, target = (drawn.direction.sources, drawn.direction.target) if drawn.direction else ((), None)
    others = [field for field in drawn.fields if field not in sources and field != target]
    parts = [_values("in", sources, drawn, modalities, gallery)]
    parts += [_values("out", [target], drawn, modalities, gallery)] if target else []
    parts += [f'<p class="sign bad">{escape(drawn.error or drawn.outcome)}</p>'] if not target else []
    if others:
        inner = _values("", others, drawn, modalities, gallery)
        parts.append(f"<details><summary>{len(others)} more</summary>{inner}</details>")
    body = f"<small>{escape(drawn.where)}</small>{''.join(parts)}"
    return f'<article class="card"><div class="answers">{body}</div></article>'


def _values(
    role: str, fields: Sequence[Field], drawn: Drawn, modalities: Mapping[str, Modality], gallery: Gallery
) -> str:
    return "".join(
        f'<div class="value"><span class="tag">{escape(f"{role} {field}".strip())}</span> '
        f"{_shown(modalities[field.modality], drawn.fields[field], gallery)}</div>"
        for field in fields
    )


def _shown(modality: Modality, read: Reader, gallery: Gallery) -> str:
    try:
        value: Any = modality.load(read())
        return gallery.show(modality, value)
    except (ValueError, OSError) as error:
        return f'<span class="sign bad">{escape(str(error))}</span>'
