"""`anyxform data check`: each kind of damage is named, and sound data pass."""

import json
import shutil
from pathlib import Path

import pytest

from anyxform.cli import main
from tests.tiny import Tiny, samples, write_shard


def arguments(tiny: Tiny, *overrides: str) -> list[str]:
    return ["data", "check", "--config-dir", str(tiny.conf), "data=tiny", *overrides]


def found(out: Path) -> dict[str, list[dict[str, str]]]:
    report = json.loads((out / "check.json").read_text())["shapes"]
    kinds: dict[str, list[dict[str, str]]] = {}
    for finding in report["findings"]:
        kinds.setdefault(finding["kind"], []).append(finding)
    return kinds


def test_sound_data_pass(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tiny, "required=[image,text:fr]", f"out={tmp_path}")) == 0
    report = json.loads((tmp_path / "check.json").read_text())["shapes"]
    assert report["samples"] == 48 == report["fields"]["text:en"] and not found(tmp_path).keys() - {"duplicate"}
    assert "shapes" in capsys.readouterr().out and "48 samples" in (tmp_path / "check.html").read_text()


SOUND = list(samples("val", 1))
LONG = json.dumps({"text": {"en": "a red square " * 30, "fr": "un carré rouge"}}).encode()


def test_a_dataset_of_which_all_is_broken_is_listed(tiny: Tiny, tmp_path: Path) -> None:
    contents = [{"__key__": "a", "json": b"{"}, {"__key__": "b", "json": b"["}]
    write_shard(tmp_path / "shapes" / "val-000000.tar", contents)
    words = ("split=val", f"data.root={tmp_path}", f"tokenizers={tiny.root / 'tokenizers'}", f"out={tmp_path}")
    assert main(arguments(tiny, *words)) == 1
    assert len(found(tmp_path)["broken"]) == 2


def test_what_the_data_do_not_have_needs_no_tokenizer(tiny: Tiny, tmp_path: Path, capsys) -> None:
    for name in ("text", "image"):
        shutil.copytree(tiny.root / "tokenizers" / name, tmp_path / "tokenizers" / name)
    assert main(arguments(tiny, f"tokenizers={tmp_path / 'tokenizers'}")) == 2
    assert "there is no tokenizer for audio" in capsys.readouterr().err
    contents = [{name: it for name, it in sample.items() if name != "wav"} for sample in SOUND]
    write_shard(tmp_path / "shapes" / "val-000000.tar", contents)
    assert main(arguments(tiny, "split=val", f"data.root={tmp_path}")) == 0


@pytest.mark.parametrize(
    ("changes", "kind", "what"),
    [
        ({"png": SOUND[0]["png"][:60]}, "undecodable", "image: "),
        ({"png": b""}, "undecodable", "image: "),
        ({"wav": b"no sound"}, "undecodable", "audio: "),
        ({"json": b"{"}, "broken", "its .json is broken"),
        ({"json": LONG}, "refused", "text:en: the text 'a red square"),
        ({"png": None}, "missing", "it has no image"),
        ({"png": b"", "wav": b""}, "undecodable", "image: "),
        ({"wav": SOUND[1]["wav"]}, "duplicate", "audio: the same as"),
        ({"png": None, "wav": None, "json": None, "txt": b"alone"}, "unused", "its fields are text"),
    ],
)
def test_what_is_wrong_with_a_sample_is_named(tiny: Tiny, tmp_path: Path, changes, kind, what, capsys) -> None:
    first, *rest = SOUND
    changed = {name: data for name, data in (first | changes).items() if data is not None}
    write_shard(tmp_path / "shapes" / "val-000000.tar", [changed, *rest])
    options = ("split=val", f"data.root={tmp_path}", f"tokenizers={tiny.root / 'tokenizers'}", f"out={tmp_path}")
    code = main(arguments(tiny, "required=[image]", *options))
    named = [finding for finding in found(tmp_path)[kind] if finding["what"].startswith(what)]
    assert len(named) == 1 and named[0]["where"].endswith(
        f"val-000000.tar: {SOUND[1 if kind == 'duplicate' else 0]['__key__']}"
    )
    assert code == (0 if kind == "duplicate" else 1)
    assert f"{kind}: {named[0]['where']}: {named[0]['what']}" in capsys.readouterr().out
    assert kind in (tmp_path / "check.html").read_text()


def test_damage_of_a_shard_is_named(tiny: Tiny, tmp_path: Path) -> None:
    shard = tmp_path / "shapes" / "val-000000.tar"
    write_shard(shard, SOUND)
    data = bytearray(shard.read_bytes())
    data[-20_000:] = b""
    shard.write_bytes(data)
    options = ("split=val", f"data.root={tmp_path}", f"tokenizers={tiny.root / 'tokenizers'}", f"out={tmp_path}")
    assert main(arguments(tiny, *options)) == 1
    assert found(tmp_path)["damaged"]


def test_what_another_split_has_too_is_named(tiny: Tiny, tmp_path: Path) -> None:
    for split, content in (("val", SOUND), ("test", [SOUND[3] | {"__key__": "again"}])):
        write_shard(tmp_path / "shapes" / f"{split}-000000.tar", content)
    options = (f"data.root={tmp_path}", f"tokenizers={tiny.root / 'tokenizers'}", f"out={tmp_path}", "split=test")
    assert main(arguments(tiny, *options)) == 0
    assert main(arguments(tiny, *options, "against=val")) == 1
    leaked = found(tmp_path)["leaked"]
    assert {it["what"].split(":")[0] for it in leaked} == {"image", "audio"}
    assert all(f"{SOUND[3]['__key__']} (" in it["what"] and "of the split val" in it["what"] for it in leaked)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=tset"], "no dataset has shards of the split 'tset'"),
        (["required=[Image]"], "'Image' is not a field"),
        (["lmit=3"], "no config key is called 'lmit'"),
    ],
)
def test_a_mistake_is_one_line(tiny: Tiny, overrides, message, capsys) -> None:
    assert main(arguments(tiny, *overrides)) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("anyxform: error: ") and said.count("\n") == 1
