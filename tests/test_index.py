"""Indices in files: what they save, that none is used for another shard than its own, and `anyxform data index`."""

import os
import shutil

import pytest

from anyxform import shard_index
from anyxform.cli import main
from anyxform.data import condition_names
from anyxform.dataset import Dataset, extensions_of
from anyxform.shard_index import open_index, write_beside
from anyxform.shards import index
from anyxform.storage import stat
from tests.faulty import serve
from tests.test_data import sample, shard
from tests.test_shards import spoil, write
from tests.toy import toys

TEXTS = {"text:*": "json.text.*"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYXFORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_index, "PAYS_FROM", 5)


@pytest.fixture
def path(tmp_path):
    """A shard of twelve samples, one of which has only texts and one a broken JSON."""
    samples = [sample(number) for number in range(12)]
    samples[3] = {"json": {"text": {"de": "frosch", "en": ""}}}
    samples[4]["json"] = '{"text": '
    (tmp_path / "data").mkdir()
    shard(tmp_path / "data" / "a.tar", samples)
    return tmp_path / "data" / "a.tar"


@pytest.fixture
def walks(monkeypatch):
    """The shards that were walked."""
    done = []

    def walk(shard, **options):
        done.append(shard.name)
        return index(shard, **options)

    monkeypatch.setattr(shard_index, "index", walk)
    return done


def whole(index):
    return [(s.key, s.members, s.outline, [s.read(ending) for ending in s.members]) for s in index.samples]


def dataset(path):
    return Dataset("a", [path], extensions=extensions_of(toys()), fields=TEXTS)


def test_an_index_from_a_file_is_the_one_that_was_written(path, walks):
    made = index(path, contents=True)
    write_beside(stat(path), made)
    assert whole(open_index(path)) == whole(made) and walks == []
    assert made.samples[0].members.keys() == {"json", "line.grid", "fr-phone.snd"}


def test_headers_are_walked_once(path, tmp_path, walks):
    shutil.rmtree(tmp_path / "cache")  # what making the shard has left
    assert whole(open_index(path)) == whole(open_index(path)) == whole(index(path))
    assert walks == [str(path)]


def test_a_small_shard_is_walked_each_time(tmp_path, walks):
    shard(tmp_path / "a.tar", [sample(0)])
    walks.clear()
    open_index(tmp_path / "a.tar"), open_index(tmp_path / "a.tar")
    assert len(walks) == 2


def test_damage_is_in_the_file_too_under_the_name_that_the_shard_has_now(path, tmp_path, walks):
    spoil(path, 1024)
    damage = index(path).damage
    assert len(damage) == 1
    write_beside(stat(path), index(path))
    moved = tmp_path / "moved"
    shutil.move(path.parent, moved)
    assert open_index(moved / "a.tar").damage == [damage[0].replace(str(path), str(moved / "a.tar"))]
    assert walks == []


@pytest.mark.parametrize("beside", [True, False])
def test_a_shard_that_was_written_again_is_never_read_by_its_old_index(path, beside):
    if beside:
        write_beside(stat(path), index(path))
    open_index(path)
    shard(path, [sample(number) for number in range(1, 13)])  # of the same size, but for its texts
    os.utime(path, (1, 1))
    found = open_index(path)
    assert whole(found) == whole(index(path))
    assert ["the index beside it was made of" in line for line in found.damage] == [True] * beside


def test_an_index_goes_with_a_shard_that_was_copied(path, tmp_path, walks):
    write_beside(stat(path), index(path))
    shutil.copytree(path.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "a.tar", (1, 1))
    assert open_index(tmp_path / "copy" / "a.tar").damage == [] == walks


def test_a_member_that_is_not_where_it_was_is_named_when_it_is_read(path):
    found = index(path)
    spoil(path, found.samples[5].members["json"].offset - 512, b"other.txt")
    with pytest.raises(ValueError, match=r"a\.tar: a005\.json is not where the index has it: .*anyxform data index"):
        found.samples[5].read("json")
    assert found.samples[6].read("json")


def test_a_bit_that_turned_since_is_named_when_it_is_read(path):
    sums, headers = index(path, contents=True), index(path)
    spoil(path, sums.samples[5].members["json"].offset + 3, b"X")
    with pytest.raises(ValueError, match=r"a\.tar: a005\.json is damaged: its bytes are not those that were indexed"):
        sums.samples[5].read("json")
    assert b"X" in headers.samples[5].read("json")


@pytest.mark.parametrize("content", [b"", b"no index", b"PK\x03\x04 nor this"])
def test_an_index_that_cannot_be_read_is_named_or_made_again(path, content):
    (path.parent / "a.tar.index").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar\.index is no index to be read .*: remove it or run anyxform data"):
        open_index(path)
    assert main(["data", "index", str(path)]) == 0
    assert whole(open_index(path)) == whole(index(path, contents=True))


def test_what_samples_hold_is_known_without_reading_them(path, monkeypatch):
    names = condition_names({"a": dataset(path)}, toys())
    write_beside(stat(path), index(path, contents=True))
    known = dataset(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert condition_names({"a": known}, toys()) == names
    assert names == ["de", "en", "fr", "line", "phone", "to:image", "to:sound", "to:text"]
    assert {tuple(map(str, fields)) for fields in known.kinds()} == {
        ("text:de",), ("image:line", "sound:fr-phone", "text:en", "text:fr")
    }  # fmt: skip


def test_outlines_of_many_names_are_not_kept(tmp_path):
    documents = {"text": {f"t{number}": "x" for number in range(1000)}}
    shard(tmp_path / "a.tar", [{"json": documents}])
    write_beside(stat(tmp_path / "a.tar"), index(tmp_path / "a.tar", contents=True))
    assert len(next(dataset(tmp_path / "a.tar").kinds())) == 1000
    assert index(tmp_path / "a.tar", contents=True).samples[0].outline == ""


# The command


def test_the_command_indexes_what_has_no_index_that_fits(path, capsys, walks):
    for name in ("b", "c"):
        shutil.copy(path, path.with_name(f"{name}.tar"))
    arguments = ["data", "index", f"{path.parent}/{{a,b}}.tar", f"{path.parent}/c*", "--workers", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "3 shards, 36 samples: 3 indexed, 0 as they were\n"
    write(path, [("a.txt", b"new")])
    assert main(arguments) == 0
    assert capsys.readouterr().out == "3 shards, 25 samples: 1 indexed, 2 as they were\n"
    assert main([*arguments, "--again"]) == 0
    assert capsys.readouterr().out == "3 shards, 25 samples: 3 indexed, 0 as they were\n"
    walks.clear()
    assert len(open_index(path).samples) == 1 and walks == []


def test_damaged_shards_are_named_and_the_others_indexed_in_several_processes(path, capsys):
    spoil(path, 1024)
    (path.parent / "b.tar").write_bytes(b"no tar " * 200)
    shutil.copy(path, path.parent / "c.tar")
    assert main(["data", "index", f"{path.parent}/*.tar", f"{path.parent}/none.tar", "--workers", "2"]) == 1
    said = capsys.readouterr()
    assert all(f"{path.parent}/{text}" in said.err for text in ("a.tar: broken", "b.tar is not a tar", "none.tar: see"))
    assert "4 shards, 24 samples: 2 indexed, 0 as they were" in said.out
    assert "2 of them could not be read" in said.err and "2 of them damaged" in said.err


def test_a_shard_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["data", "index", str(tmp_path / "none.tar")]) == 2
    assert capsys.readouterr().err.startswith(f"anyxform: error: there is no shard {tmp_path}/none.tar: ")


def test_indices_of_remote_shards_are_kept_or_written_to_a_folder(path, tmp_path, walks, capsys):
    with serve(path.parent) as server:
        url = f"{server.url}/a.tar"
        assert main(["data", "index", url, "--out", str(tmp_path / "indices")]) == 0
        assert main(["data", "index", url]) == 0 and len(walks) == 2
        assert main(["data", "index", url]) == 0 and len(walks) == 2
        open_index(url)
        assert len(walks) == 2
    assert "1 indexed" in capsys.readouterr().out
    shutil.copy(tmp_path / "indices" / "a.tar.index", path.parent)
    assert open_index(path).damage == [] and len(walks) == 2


@pytest.mark.parametrize(
    ("arguments", "message"), [(["none-*.tar"], "there is no shard none-*.tar"), (["--workers", "0"], "--workers 0 is")]
)
def test_mistakes_are_one_line(path, arguments, message, capsys):
    assert main(["data", "index", *([str(path)] if "--workers" in arguments else []), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
