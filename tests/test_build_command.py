"""`anyxform data build`: every value of a source is in exactly one shard, however often the build is cut off."""

import csv
import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from anyxform.build import write
from anyxform.build.sources import Entry
from anyxform.build.write import plan
from anyxform.cli import main
from anyxform.dataset import open_datasets
from anyxform.modality import registry
from anyxform.shard_index import open_index
from anyxform.shards import index
from tests.test_shards import spoil
from tests.tiny import samples, write_shard

SAMPLES = list(samples("val", 1))  # twelve, with a picture, a tone and two texts


@pytest.fixture
def folder(tmp_path):
    """Files by class; a note that no modality reads."""
    for it in SAMPLES:
        stem = tmp_path / "files" / it["__key__"].split("-")[0] / it["__key__"]
        stem.parent.mkdir(parents=True, exist_ok=True)
        texts = json.loads(it["json"])["text"]
        for ending, data in {"PNG": it["png"], "fr.wav": it["wav"], "fr.txt": texts["fr"].encode()}.items():
            stem.with_name(f"{stem.name}.{ending}").write_bytes(data)
    return tmp_path / "files"


def table(path, rows):
    with open(path, "w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def rows(folder):
    """The same files as rows of a table."""
    found = []
    for path in sorted(folder.rglob("*.PNG")):
        name = path.relative_to(folder.parent).as_posix()
        found.append({"name": path.stem, "photo": name, "voice": f"{name[:-4]}.fr.wav", "title": f"a {path.stem}"})
    return found


def build(*arguments):
    return main(["data", "build", *map(str, arguments), "--workers", "1"])


def contents(out):
    """Every member of every shard: {split: {key: {ending: bytes}}}, as webdataset reads them."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        for it in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
            members = {ending: data for ending, data in it.items() if not ending.startswith("__")}
            assert found.setdefault(path.name.split("-")[0], {}).setdefault(it["__key__"], members) is members
    return found


def merged(out):
    return {key: members for split in contents(out).values() for key, members in split.items()}


def test_a_folder(folder, tmp_path, capsys):
    assert build(folder, tmp_path / "out", "--samples", 4, "--val", 0.2) == 0
    found = merged(tmp_path / "out")
    assert len(found) == 12
    for it in SAMPLES:
        texts, key = json.loads(it["json"])["text"], f"{it['__key__'].split('-')[0]}/{it['__key__']}"
        assert found[key] == {"png": it["png"], "fr.wav": it["wav"], "fr.txt": texts["fr"].encode()}
    assert "shards: train 3" in capsys.readouterr().out
    config = {"it": {"shards": "out/{split}-*.tar"}}
    dataset = open_datasets(config, registry(), root=str(tmp_path))["it"]
    assert [str(field) for field in dataset.fields(0)] == ["audio:fr", "image", "text:fr"]
    assert all(index(path).damage == [] for path in (tmp_path / "out").glob("*.tar"))


def test_each_shard_has_its_index_with_checksums(folder, tmp_path):
    build(folder, tmp_path / "out")
    for path in (tmp_path / "out").glob("*.tar"):
        assert list(open_index(path).samples) == list(index(path, contents=True).samples)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_table(rows, tmp_path, ending):
    path = table(tmp_path / f"table{ending}", rows)
    fields = ["--field", "image=photo", "--field", "audio:fr=voice", "--field", "text:en=title", "--key", "name"]
    assert build(path, tmp_path / "out", *fields) == 0
    found = merged(tmp_path / "out")
    assert {key: it["en.txt"].decode() for key, it in found.items()} == {row["name"]: row["title"] for row in rows}
    assert {it["__key__"]: (it["png"], it["wav"]) for it in SAMPLES} == {
        key: (it["png"], it["fr.wav"]) for key, it in found.items()
    }


def test_places_in_a_jsonl_empty_values_and_missing_files(tmp_path, capsys):
    lines = [
        {"id": "a.b", "t": {"en": "one"}},
        {"id": "b", "t": {"en": ""}},
        {"id": "c", "t": {"en": "three"}, "p": "n.png"},
    ]
    path = table(tmp_path / "table.jsonl", lines)
    path.write_text(path.read_text() + "{broken\n\n")
    assert build(path, tmp_path / "out", "--field", "text:en=t.en", "--field", "image=p", "--key", "id") == 1
    assert merged(tmp_path / "out") == {"a_b": {"en.txt": b"one"}}
    said = capsys.readouterr().err
    assert "line 4 is broken" in said and "left out: b: it has no members" in said and "left out: c: " in said
    assert "n.png" in said


def test_rows_that_are_no_rows_are_named_and_the_rest_is_kept(tmp_path, capsys):
    (tmp_path / "t.tsv").write_text('name\ttitle\na\tone\nb\t"Two," he said\nc\tthree\n')
    assert build(tmp_path / "t.tsv", tmp_path / "out", "--field", "text:en=title", "--key", "name") == 1
    assert merged(tmp_path / "out") == {"a": {"en.txt": b"one"}, "c": {"en.txt": b"three"}}
    assert "t.tsv: line 3 is broken: " in capsys.readouterr().err


def test_a_list_is_no_text(tmp_path, capsys):
    path = table(tmp_path / "t.jsonl", [{"t": "one"}, {"t": ["two", "three"]}, {"t": 4}])
    assert build(path, tmp_path / "out", "--field", "text:en=t") == 1
    assert sorted(it["en.txt"] for it in merged(tmp_path / "out").values()) == [b"4", b"one"]
    assert "text:en: ['two', 'three'] is no single value: give a column" in capsys.readouterr().err


def test_a_table_leads_to_files_of_its_modality_alone(tmp_path, capsys):
    (tmp_path / "secret").write_text("mine")
    places = ({"path": str(tmp_path / "secret")}, {"path": 5}, {"bytes": "abc"}, "one")
    path = table(tmp_path / "t.jsonl", [{"t": place} for place in places])
    assert build(path, tmp_path / "out", "--field", "text:en=t") == 1
    assert [it["en.txt"] for it in merged(tmp_path / "out").values()] == [b"one"]
    said = capsys.readouterr().err
    assert "secret' is no file of text (txt)" in said and said.count("holds no bytes, nor the path of a file") == 2


def test_files_of_a_table_count_for_the_size_of_shards(tmp_path, rows):
    fields = ["--field", "image=photo", "--key", "name", "--val", "0", "--test", "0"]
    size = (tmp_path / rows[0]["photo"]).stat().st_size
    assert build(table(tmp_path / "t.csv", rows), tmp_path / "out", *fields, "--megabytes", 2.5 * size / 1e6) == 0
    assert len(list((tmp_path / "out").glob("*.tar"))) > 3


def test_existing_shards_are_dealt_anew_and_keep_their_splits(tmp_path):
    for number in range(3):  # each counts from 0
        some = [it | {"__key__": f"{place}"} for place, it in enumerate(SAMPLES[4 * number : 4 * number + 4])]
        write_shard(tmp_path / "in" / f"{'validation' if number == 2 else 'train'}-{number}.tar", some)
    assert build(tmp_path / "in", tmp_path / "out", "--samples", 3) == 0
    found = contents(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 8, "val": 4}
    assert set(found["val"]) == {f"validation-2_{place}" for place in range(4)}
    assert found["val"]["validation-2_1"] == {n: SAMPLES[9][n] for n in ("png", "wav", "json")}
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 3


def test_damage_of_existing_shards_is_named_and_the_rest_is_kept(tmp_path, capsys):
    write_shard(tmp_path / "in" / "a.tar", SAMPLES)
    with tarfile.open(tmp_path / "in" / "a.tar") as tar:
        spoil(tmp_path / "in" / "a.tar", tar.getmember(f"{SAMPLES[5]['__key__']}.png").offset)
    assert build(tmp_path / "in", tmp_path / "out") == 1
    assert "left out: " in (said := capsys.readouterr().err) and "broken header at byte" in said
    assert len(merged(tmp_path / "out")) == 12


@pytest.mark.parametrize("with_state", [False, True])
def test_a_hugging_face_dataset(rows, tmp_path, with_state):
    pyarrow = pytest.importorskip("pyarrow")
    for split, some in {"train": rows[:8], "validation": rows[8:]}.items():
        folder = tmp_path / "hf" / split
        folder.mkdir(parents=True)
        photos = [{"bytes": (tmp_path / row["photo"]).read_bytes(), "path": None} for row in some]
        made = pyarrow.table(
            {"photo": photos, "title": [row["title"] for row in some], "name": [row["name"] for row in some]}
        )
        for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):  # the library keeps what `map` made beside it
            with pyarrow.ipc.new_stream(str(folder / name), made.schema) as writer:
                writer.write_table(made)
        if with_state:
            state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
            (folder / "state.json").write_text(json.dumps(state))
    arguments = ["--field", "image=photo", "--field", "text:en=title", "--key", "name"]
    assert build(tmp_path / "hf", tmp_path / "out", *arguments) == 0
    found = contents(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 8, "val": 4}
    for it in SAMPLES:
        assert merged(tmp_path / "out")[it["__key__"]] == {"png": it["png"], "en.txt": f"a {it['__key__']}".encode()}


# Splits


def entries(count, **options):
    return [Entry(f"k{number}", options.get("group", "k{}").format(number), number) for number in range(count)]


def test_shares_and_shards():
    parts = plan(entries(4000), val=0.1, test=0.2, samples=500)
    counts = {
        split: sum(len(it.entries) for it in parts if it.name.startswith(split)) for split in ("train", "val", "test")
    }
    assert 300 < counts["val"] < 500 and 700 < counts["test"] < 900 and sum(counts.values()) == 4000
    assert max(len(part.entries) for part in parts) == 500
    assert {entry.key for part in parts for entry in part.entries} == {f"k{number}" for number in range(4000)}
    numbers = [entry.place for entry in parts[0].entries]
    assert numbers != sorted(numbers)  # a folder's classes are not one after another


def test_a_split_does_not_depend_on_what_else_there_is():
    def split_of(parts):
        return {entry.key: part.name.split("-")[0] for part in parts for entry in part.entries}

    few, many = split_of(plan(entries(100), val=0.3)), split_of(plan(entries(1000), val=0.3))
    assert few.items() <= many.items() and set(few.values()) == {"train", "val", "test"}


def test_a_group_is_in_one_split():
    some = [Entry(f"k{number}", f"speaker{number % 7}", number) for number in range(200)]
    parts = plan(some, val=0.3, test=0.3)
    splits = {}
    for part in parts:
        for entry in part.entries:
            splits.setdefault(entry.group, set()).add(part.name.split("-")[0])
    assert len(splits) == 7 and all(len(found) == 1 for found in splits.values())


# Going on


def digests(out):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.tar")}


def test_a_build_that_was_cut_off_goes_on_where_it_stopped(folder, tmp_path, monkeypatch, capsys):
    build(folder, tmp_path / "whole", "--samples", 2)
    read, calls = Path.read_bytes, []

    def stop(path):
        calls.append(path)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stop)
    assert build(folder, tmp_path / "out", "--samples", 2) == 130
    done = digests(tmp_path / "out")
    assert 0 < len(done) < len(digests(tmp_path / "whole"))
    calls[:] = range(100)
    assert build(folder, tmp_path / "out", "--samples", 2) == 0
    assert len(calls) < 136  # files of what was there are not read again
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert f"{len(done)} were there before" in capsys.readouterr().out


def test_several_processes_write_the_same_shards(folder, tmp_path):
    build(folder, tmp_path / "one", "--samples", 3)
    assert main(["data", "build", str(folder), str(tmp_path / "two"), "--samples", "3", "--workers", "2"]) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_what_was_left_out_is_said_again_by_a_build_that_goes_on(tmp_path, rows, capsys):
    rows[3]["photo"] = "gone.png"
    path = table(tmp_path / "table.csv", rows)
    for _ in range(2):
        assert build(path, tmp_path / "out", "--field", "image=photo", "--key", "name") == 1
        assert f"left out: {rows[3]['name']}: " in capsys.readouterr().err


def test_a_build_goes_on_only_with_what_it_began_with(tmp_path, rows, capsys):
    path = table(tmp_path / "table.csv", rows)
    photo = tmp_path / rows[3]["photo"]
    kept = photo.read_bytes()
    photo.unlink()
    fields = ["--field", "image=photo", "--field", "text:en=title", "--key", "name"]
    assert build(path, tmp_path / "out", *fields) == 1
    assert "once that is mended, --again" in capsys.readouterr().err
    assert build(path, tmp_path / "out", *fields[:2], "--field", "text:fr=title", "--key", "name") == 2
    photo.write_bytes(kept)
    assert build(path, tmp_path / "out", *fields) == 2
    assert "a source that has changed since" in capsys.readouterr().err
    assert build(path, tmp_path / "out", *fields, "--again") == 0
    assert merged(tmp_path / "out")[rows[3]["name"]]["png"] == kept


def test_again_tries_once_more_what_could_not_be_read(folder, tmp_path, monkeypatch):
    refuse, lost = Path.read_bytes, next(folder.rglob("*.txt"))

    def fail(path):
        if path == lost:
            raise PermissionError("not yours")
        return refuse(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert build(folder, tmp_path / "out") == 1 == build(folder, tmp_path / "out")
    monkeypatch.undo()
    assert build(folder, tmp_path / "out", "--again") == 0
    assert len(merged(tmp_path / "out")) == 12 and write.left_out(tmp_path / "out") == []


def test_shards_of_something_else_are_not_overwritten(folder, tmp_path, capsys):
    build(folder, tmp_path / "out", "--samples", 2)
    assert build(folder, tmp_path / "out", "--samples", 5) == 2
    assert "holds shards of another source, of other options or" in capsys.readouterr().err
    assert build(folder, tmp_path / "out", "--samples", 5, "--again") == 0
    assert len(merged(tmp_path / "out")) == 12 == sum(len(index(p).samples) for p in (tmp_path / "out").glob("*.tar"))
    next(folder.rglob("*.txt")).write_text("another text")
    assert build(folder, tmp_path / "out", "--samples", 5) == 2


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none is no folder, no CSV, TSV, JSONL, no shard"),
        (["files", "--key", "name"], "files is no table: --field, --key"),
        (["files", "--val", "0.7", "--test", "0.3"], "shares val=0.7 and test=0.3 are not possible"),
        (["empty"], "empty has no samples: files are samples if a modality reads"),
        (["table.csv"], "table.csv has the columns name, photo, voice, title: say what they are"),
        (["table.csv", "--field", "image=phot"], "table.csv has no column 'phot': did you mean 'photo'?"),
        (["table.csv", "--field", "imag=photo"], "--field imag: no modality is called 'imag': did you mean 'image'?"),
        (["table.csv", "--field", "photo"], "--field photo: write FIELD=COLUMN"),
        (["double.csv", "--field", "image=photo", "--key", "name"], "two samples have the key 'same': give --key"),
        (["."], "out is inside ."),
        (["out/*.tar", "--again"], "out is where the shards of out/*.tar are: give another folder"),
        (["out/train-0.tar", "--again"], "out is where the shards of"),
    ],
)
def test_mistakes_are_one_line(folder, rows, tmp_path, monkeypatch, arguments, message, capsys):
    table(tmp_path / "table.csv", rows)
    table(tmp_path / "double.csv", [row | {"name": "same"} for row in rows])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    if "--again" in arguments:
        write_shard(tmp_path / "out" / "train-0.tar", SAMPLES)
    before = sorted(tmp_path.rglob("*"))
    assert build(*arguments[:1], "out", *arguments[1:]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


def test_files_that_no_modality_reads_are_named(folder, tmp_path, capsys):
    (folder / "red" / "notes.doc").write_text("x")
    (folder / "red" / "lost.png").symlink_to("nowhere.png")
    assert build(folder, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "notes.doc: no modality reads .doc" in said and "No such file or directory: " in said and "lost.png" in said
    assert write.left_out(tmp_path / "out") == []
