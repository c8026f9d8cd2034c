"""index.html of the demo: one page, no scripts, nothing from elsewhere; pictures and recordings lie beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from anyxform.demo.exhibits import Card, Section
from anyxform.demo.media import Gallery, document, marked
from anyxform.demo.showcase import Shown
from anyxform.evaluate import MODEL, Item, Row
from anyxform.field import Field
from anyxform.modality import Modality
from anyxform.statistics import Interval

TITLES: dict[Section, tuple[str, str]] = {
    ("image", "text"): (
        "Pictures, described",
        "A picture goes in, its name comes out, in the language that is asked for.",
    ),
    ("text", "image"): (
        "Words, drawn",
        "Words go in; each drawing is one more roll of the dice. The original is last.",
    ),
    ("audio", "text"): (
        "Speech, written down",
        "A recording goes in, its words come out, in its own language or another.",
    ),
    ("text", "audio"): ("Words, spoken", "Words go in; the model speaks them. A person's own recording is beside it."),
    ("text", "text"): ("Words, translated", "The same words in another language."),
}
MARKS = {
    "better": ("▲", "better than every baseline"),
    "worse": ("▼", "worse than a baseline"),
    "undecided": ("●", "too close to call"),
}


@dataclass(frozen=True)
class Contents:
    """All that the page shows. `answers` are lists: several draws of one item, the evaluated one first."""

    facts: Sequence[tuple[str, str]]
    command: str
    cards: Mapping[Section, Sequence[Card]]
    items: Sequence[Item]
    answers: Mapping[int, Sequence[Any]]
    summary: Sequence[Row]
    directions: Sequence[Row]
    curve: str
    notes: Sequence[str] = ()
    starter: Sequence[Shown] = ()
    starter_facts: str = ""


def render(contents: Contents, modalities: Mapping[str, Modality], gallery: Gallery) -> str:
    """The whole page."""
    sections = [
        _section(
            *_title(section), [_card(card, contents.items, contents.answers, modalities, gallery) for card in cards]
        )
        for section, cards in contents.cards.items()
    ]
    body = f"""{_header(contents)}
<main>
{"".join(sections)}
{_results(contents)}
{_training(contents)}
{_starter(contents, modalities, gallery)}
</main>
<footer>{"".join(f"<p>{escape(note)}</p>" for note in contents.notes)}</footer>"""
    return document("anyxform: one model, any pair", body)


def _header(contents: Contents) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in contents.facts)
    return f"""<header>
<p class="brand">anyxform</p>
<h1>One model, <em>any</em> pair.</h1>
<p class="lead">One set of weights, trained from nothing on this machine just now, turns pictures, speech and words into
one another. Nothing that it was asked for was seen in training, and a seed chose it, not a person: failures are shown
as they come.{" Further down stands the starter, which ships." if contents.starter else ""}</p>
<dl class="facts">{facts}</dl>
<div class="scores">{"".join(map(_score, contents.summary))}</div>
</header>
"""


def _score(row: Row) -> str:
    """One pair of modalities at a glance: the model's bar and that of its strongest baseline."""
    verdict, name = row.verdict(row.headline), row.strongest(row.headline)
    mark, meaning = MARKS[verdict]
    best = row.systems[name][row.headline] if name else None
    model = row.systems[MODEL][row.headline]
    scale = max(abs(model.high), abs(best.value) if best else 0.0, 1e-9)
    bars = _bar(MODEL, model.value / scale, _number(model.value))
    if best:
        bars += _bar(str(name), best.value / scale, _number(best.value))
    return f"""<div class="score {verdict}">
<h3>{_arrow(row.direction)} <span class="sign" title="{meaning}">{mark}</span></h3>{bars}
<p>{_metric(row, row.headline)}, {model.n} samples; {meaning}</p></div>"""


def _bar(name: str, share: float, value: str) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="bar {"own" if name == MODEL else "other"}"><span>{escape(name)}</span><span>{value}</span>'
        f'<i><b style="width:{width:.0f}%"></b></i></div>'
    )


def _title(section: Section) -> tuple[str, str, str]:
    """Its class in the style, its title and its lead."""
    return "-".join(section).replace("+", "-"), *TITLES.get(section, (f"{section[0]} → {section[1]}", ""))


def _section(kind: str, title: str, lead: str, cards: Sequence[str]) -> str:
    return f"""<section class="{escape(kind)}"><h2>{escape(title)}</h2>
<p class="lead">{escape(lead)}</p><div class="cards">{"".join(cards)}</div></section>
"""


def _starter(contents: Contents, modalities: Mapping[str, Modality], gallery: Gallery) -> str:
    """The model that ships, below the one that was trained just now."""
    if not contents.starter:
        return ""
    parts = ""
    for shown in contents.starter:
        cards = [_card(card, shown.items, shown.answers, modalities, gallery) for card in shown.cards]
        parts += _section(_title(shown.cards[0].section)[0], shown.part.title, shown.part.lead, cards)
    return f"""<section class="starter"><h2>The starter, which ships</h2>
<p class="lead">{escape(contents.starter_facts)}
The same seed chose these, and failures are shown as they come.</p></section>
{parts}"""


def _card(
    card: Card,
    items: Sequence[Item],
    values: Mapping[int, Sequence[Any]],
    modalities: Mapping[str, Modality],
    gallery: Gallery,
) -> str:
    first = items[card.items[0]]
    given = "".join(
        f'<div class="value">{_tag(field)}{gallery.show(modalities[field.modality], value)}</div>'
        for field, value in zip(first.direction.sources, first.sources, strict=True)
    )
    answers = ""
    for number in card.items:
        item, draws = items[number], values[number]
        modality = modalities[item.direction.target.modality]
        answers += _words(item, draws[0]) if isinstance(item.reference, str) else _media(item, draws, modality, gallery)
    return f'<article class="card"><div class="given">{given}</div><div class="answers">{answers}</div></article>'


def _words(item: Item, answer: str) -> str:
    """An answer in words, and the truth below it if that is another one."""
    reference = str(item.reference)
    if _plain(answer) == _plain(reference):
        sign, truth = '<span class="sign good">✓</span>', ""
    else:
        sign = '<span class="sign bad">✗</span>'
        truth = (
            f'<div class="truth"><small>truth</small><span class="words" dir="auto">{escape(reference)}</span></div>'
        )
    model = f'<div class="model">{sign}{marked(answer, reference)}</div>'
    return f'<div class="answer">{_tag(item.direction.target)}{model}{truth}</div>'


def _media(item: Item, draws: Sequence[Any], modality: Modality, gallery: Gallery) -> str:
    """Pictures or recordings, one for each draw, and the real one."""
    captions = [f"model, seed {number}" for number in range(len(draws))] if len(draws) > 1 else ["model"]
    figures = "".join(
        f"<figure>{gallery.show(modality, draw)}<figcaption>{caption}</figcaption></figure>"
        for draw, caption in zip(draws, captions, strict=True)
    )
    real = gallery.show(modality, item.reference)
    figures += f'<figure class="real">{real}<figcaption>the original</figcaption></figure>'
    return f'<div class="answer media">{_tag(item.direction.target)}<div class="row">{figures}</div></div>'


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!?")


def _results(contents: Contents) -> str:
    marks = " ".join(
        f'<span class="{name}"><span class="sign">{mark}</span> {text}</span>' for name, (mark, text) in MARKS.items()
    )
    first = [(row, row.headline) for row in contents.summary]
    every = [(row, metric) for row in contents.summary for metric in row.metrics]
    directions = [(row, row.headline) for row in contents.directions]
    return f"""<section class="results"><h2>Against the baselines</h2>
<p class="lead">Every number is followed by its 95 % interval (bootstrap over samples). <b>won</b> is the share of
samples on which the model is better than the strongest baseline (underlined); a tie counts half. <b>truth</b> is what
an independent judge makes of the originals themselves: no model can do better.
<span class="legend">{marks}</span></p>
{_table(first)}
<details><summary>All metrics</summary>{_table(every)}</details>
<details><summary>All {len(directions)} directions</summary>{_table(directions)}</details></section>
"""


def _table(rows: Sequence[tuple[Row, str]]) -> str:
    names = list(dict.fromkeys(name for row, _ in rows for name in row.systems if name != MODEL))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["direction", "n", "metric", MODEL, *names, "won", ""])
    body = "".join(_table_row(row, metric, names) for row, metric in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(row: Row, metric: str, names: Sequence[str]) -> str:
    cells = [
        f'<th scope="row">{_arrow(row.direction)}</th>',
        f"<td>{row.systems[MODEL][metric].n}</td>",
        f"<td>{_metric(row, metric)}</td>",
    ]
    cells.append(f'<td class="own">{_interval(row.systems[MODEL][metric])}</td>')
    strongest = row.strongest(metric)
    for name in names:
        best = ' class="strongest"' if name == strongest else ""
        cells.append(f"<td{best}>{_interval(row.systems.get(name, {}).get(metric))}</td>")
    wins = f"{row.against[strongest][metric].wins:.0%}" if strongest else ""
    verdict = row.verdict(metric)
    mark, meaning = MARKS[verdict]
    cells.append(f'<td>{wins}</td><td class="sign" title="{meaning}">{mark}</td>')
    return f'<tr class="{verdict}">{"".join(cells)}</tr>'


def _training(contents: Contents) -> str:
    return f"""<section class="training"><h2>How it was trained</h2>
<p class="lead">The loss per target token, from the first step.</p>{contents.curve}
<p class="lead">To do it again:</p><pre>{escape(contents.command)}</pre></section>
"""


def _interval(value: Interval | None) -> str:
    if value is None:
        return '<span class="none">–</span>'
    return f"{_number(value.value)} <small>{_number(value.low)}–{_number(value.high)}</small>"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _metric(row: Row, metric: str) -> str:
    return f"{escape(metric)} {'↓' if metric in row.lower_is_better else '↑'}"


def _arrow(direction: str) -> str:
    return escape(direction.replace(">", " → ").replace("+", " + "))


def _tag(field: Field) -> str:
    return f'<span class="tag">{field}</span>'
