"""What others have made is read with care: odd names, deep documents, arrays that lie, addresses with secrets."""

import io
import json
import os
import time

import numpy as np
import pytest

from anyxform.cli import main
from anyxform.cli.arguments import printable
from anyxform.curve import training_curve
from anyxform.dataset import Dataset, extensions_of
from anyxform.modality import registry
from anyxform.selection import choose_items
from anyxform.storage import without_secrets
from anyxform.stored_codes import from_bytes
from modalities.audio import container
from modalities.text import sentences
from tests.tiny import PNG, Tiny, write_shard
from tests.toy import ToySound

ODD = os.fsdecode(b"caf\xe9\x1b[2J")


def opened(path, **fields):
    return Dataset("odd", [path], extensions=extensions_of(registry()), fields=fields)


def test_a_name_that_is_no_unicode_is_a_key_like_any_other(tmp_path, tiny: Tiny, capsys):
    write_shard(tmp_path / "val-0.tar", [{"__key__": ODD, "png": PNG, "en.txt": b"a disc"}])
    modalities = {name: it() for name, it in registry().items() if name in ("text", "image")}
    found = choose_items({"odd": opened(tmp_path / "val-0.tar")}, modalities, patterns=["image>text"])
    assert [item.key for item in found.items] == [f"odd/{ODD}"]
    write_shard(tmp_path / "val-0.tar", [{"__key__": ODD, "png": b"no picture", "en.txt": b"a disc"}])
    where = [f"data.root={tmp_path}", "~data.datasets.shapes", "+data.datasets.odd.shards=val-*.tar", "split=val"]
    common = ["--config-dir", str(tiny.conf), "data=tiny", "tokenizers=none", *where]
    assert main(["data", "check", *common, f"out={tmp_path / 'check'}"]) == 1
    said = capsys.readouterr().out
    assert "\\udce9\\x1b[2J" in said and "\x1b" not in said
    assert json.loads((tmp_path / "check" / "check.json").read_text())
    assert main(["data", "build", str(tmp_path / "val-0.tar"), str(tmp_path / "out"), "--workers", "1"]) == 0


def test_a_text_that_cannot_be_read_ends_no_evaluation(tmp_path):
    texts = {"a": b"a disc", "b": b"\xff\xfe\x00", "c": b"  "}
    write_shard(tmp_path / "a.tar", [{"__key__": key, "png": PNG, "en.txt": text} for key, text in texts.items()])
    modalities = {name: it() for name, it in registry().items() if name in ("text", "image")}
    found = choose_items({"odd": opened(tmp_path / "a.tar")}, modalities, patterns=["image>text"])
    assert [item.key for item in found.items] == ["odd/a"] and found.refused.total() == 2


def test_what_a_terminal_is_shown_steers_nothing():
    assert printable("a\x1b[2Jb\u2028c\udce9 é") == "a\\x1b[2Jb\\u2028c\\udce9 é"


def test_a_document_without_bottom_is_a_broken_one(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": "deep", "json": b"[" * 100_000}, {"__key__": "b", "json": b"{}"}])
    found = opened(tmp_path / "a.tar", **{"text:*": "json.text.*"})
    with pytest.raises(ValueError, match=r"its \.json is broken"):
        found.fields(0)
    assert len(list(found.kinds())) == 1


@pytest.mark.parametrize("shape", ["(1099511627776, 1)", "("])
def test_codes_whose_header_lies(shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(9)
    with pytest.raises(ValueError, match="the stored codes cannot be read"):
        from_bytes(data, ToySound())
    good = io.BytesIO()
    np.save(good, np.zeros((3, ToySound().num_codebooks), dtype=np.uint8))
    assert len(from_bytes(good.getvalue(), ToySound())) == 3


def test_bytes_are_taken_for_the_container_that_they_begin_as():
    """Not for a playlist, which FFmpeg may find in them, and which opens what it names."""
    pytest.importorskip("av")
    began = time.monotonic()
    with pytest.raises(ValueError, match="not a recording that can be read"):
        container.decode(b"\xff\xf1\nc=IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pass@b.example/x-{000..9}.tar?sig=abc&x=1", "https://b.example/x-{000..9}.tar"),
        ("'data.shards=https://b/x.tar?sig=S' lr=1", "'data.shards=https://b/x.tar' lr=1"),
        ("s3://bucket/a@b.tar, audio:en*>text:en what? yes", "s3://bucket/a@b.tar, audio:en*>text:en what? yes"),
    ],
)
def test_no_secrets_of_addresses_are_recorded(text, expected):
    assert without_secrets(text) == expected


@pytest.mark.parametrize("text", ["a" + "." * 300_000 + "b", "a" + " " * 300_000 + "b", "a" + "\n" * 300_000 + "b"])
def test_long_rows_of_signs_are_read_once(text):
    began = time.monotonic()
    list(sentences.sentences(text))
    assert time.monotonic() - began < 10


def test_a_name_in_a_journal_is_no_markup():
    svg = training_curve([{"step": 1, "loss": 1.0, "directions": {'x"/><script>alert(1)</script>:a>y': 2.0}}] * 2)
    assert "<script" not in svg
