"""`anyxform data preview`: a page that shows what training will draw, as it will draw it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anyxform.cli import main
from tests.tiny import Tiny, samples, write_shard


class Links(HTMLParser):
    """The files that a page shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def preview(tiny: Tiny, out: Path, *overrides: str) -> int:
    return main(["data", "preview", "--config-dir", str(tiny.conf), "data=tiny", f"out={out}", *overrides])


def test_the_page_shows_samples_as_training_draws_them(tiny: Tiny, tmp_path: Path) -> None:
    assert preview(tiny, tmp_path, "samples=5", "draws=300") == 0
    page = (tmp_path / "index.html").read_text()
    assert page.count('<article class="card">') == 5
    assert {tmp_path / link for link in Links(page).found} == {*(tmp_path / "media").iterdir()}
    assert ">audio, image, text:en, text:fr<" in page and "<td>48</td>" in page
    shares = dict(re.findall(r"<td>([^<]*&gt;[^<]*)</td><td>([\d.]+)%</td>", page))
    assert set(shares) >= {"image&gt;text:fr", "text:en&gt;audio", "text:fr&gt;text:en"}
    assert "audio&gt;text:fr" not in shares  # it is held out
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.5)


def test_the_first_card_is_the_first_sample_of_a_training(tiny: Tiny, tmp_path: Path) -> None:
    from anyxform.cli.conf import compose
    from anyxform.cli.train import Run

    arguments = tiny.train(tmp_path / "run")[1:]
    run = Run(compose("train", arguments), arguments)
    rows = run.data.rows("train", run.state.model, run.modalities, seed=3, pad=False)
    from anyxform.data import Counts

    first = rows.examples(0, Counts())
    assert preview(tiny, tmp_path / "page", "samples=1", "draws=1", "seed=3") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert first is not None and f": {first.key}</small>" in page
    assert f"<td>{first.direction.replace('>', '&gt;')}</td><td>100.0%</td>" in page


def test_folders_of_others_are_left_alone(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "mine.png").write_bytes(b"mine")
    assert preview(tiny, tmp_path) == 2
    assert f"{tmp_path / 'media'} is there already, and is not known" in capsys.readouterr().err
    assert (tmp_path / "media" / "mine.png").read_bytes() == b"mine"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    assert preview(tiny, tmp_path / "site") == 2 and (tmp_path / "site" / "index.html").read_text() == "mine"
    assert preview(tiny, tmp_path / "page", "samples=1") == 0 == preview(tiny, tmp_path / "page", "samples=2")


def test_what_is_broken_is_shown_as_such(tiny: Tiny, tmp_path: Path) -> None:
    first, second, third, *_ = samples("val", 1)
    alone = {"__key__": third["__key__"], "png": third["png"]}
    broken = [first | {"json": b"{"}, second | {"png": b"no <picture>"}, alone]
    write_shard(tmp_path / "shapes" / "val-000000.tar", broken)
    assert preview(tiny, tmp_path / "out", f"data.root={tmp_path}", "split=val", "samples=30", "draws=60") == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "its .json is broken" in page and "no direction fits" in page and "no <picture>" not in page
    assert '<span class="sign bad">the picture is none of' in page


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["samples=0"], "samples=0 must be 1 or more"), (["split=tset"], "no dataset has shards of the split 'tset'")],
)
def test_a_mistake_is_one_line(tiny: Tiny, tmp_path: Path, overrides, message, capsys) -> None:
    assert preview(tiny, tmp_path, *overrides) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
