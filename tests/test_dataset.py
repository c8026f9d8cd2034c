"""Datasets: which fields a sample has, from its members and from places in its JSON, and what is refused."""

import io
import json
import re
import tarfile

import pytest

from anyxform.dataset import Dataset, extensions_of, open_datasets
from tests.toy import ToyImage, ToySound, ToyText, toys

TEXTS = {"text:*": "json.text.*"}


def write(path, *members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def dataset(tmp_path, *members, fields=TEXTS, **options):
    path = write(tmp_path / "a.tar", *members)
    return Dataset("toy", [path], extensions=extensions_of(toys()), fields=fields, **options)


def fields(dataset, number=0):
    return {str(field): read().decode() for field, read in dataset.fields(number).items()}


def test_members_are_fields_of_the_modality_that_owns_their_ending(tmp_path):
    members = [("a.txt", "plain"), ("a.fr.txt", "french"), ("a.fr-phone.SND", "sound"), ("a.jpg", "nobody's")]
    found = dataset(tmp_path, *members)
    assert fields(found) == {"sound:fr-phone": "sound", "text": "plain", "text:fr": "french"}
    assert list(found.fields(0)) == sorted(found.fields(0))


def test_places_in_a_json_are_fields_but_stored_in_no_member(tmp_path):
    document = {"text": {"en": "frog", "fr": "grenouille"}, "deep": {"grid": [0, 1, 2, 3, 4, 5]}, "other": "not asked"}
    places = TEXTS | {"image:tiny": "json.deep.grid", "text:title": "json.no.such.place"}
    found = dataset(tmp_path, ("a.json", document), ("a.snd", "sound"), fields=places)
    texts = {"text:en": "frog", "text:fr": "grenouille"}
    assert fields(found) == {"image:tiny": "[0, 1, 2, 3, 4, 5]", "sound": "sound", **texts}
    assert {str(field) for field in found.stored(0)} == {"sound"}


def test_a_star_may_stand_above_the_last_place(tmp_path):
    document = {"languages": {"en": {"caption": "frog"}, "fr": {"caption": "grenouille"}, "de": {}, "version": 2}}
    found = dataset(tmp_path, ("a.json", document), fields={"text:*": "json.languages.*.caption"})
    assert fields(found) == {"text:en": "frog", "text:fr": "grenouille"}


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_what_is_missing_or_empty_is_no_field(tmp_path, empty):
    found = dataset(tmp_path, ("a.json", {"text": {"en": empty, "fr": "oui"}}), ("b.json", {"text": empty}))
    assert fields(found) == {"text:fr": "oui"}
    assert fields(found, 1) == {}


def test_zero_is_a_value(tmp_path):
    found = dataset(tmp_path, ("a.json", {"count": 0}), fields={"text": "json.count"})
    assert fields(found) == {"text": "0"}


@pytest.mark.parametrize("document", [[1, 2], "text", 7, None])
def test_a_json_without_such_places_has_no_fields(tmp_path, document):
    assert fields(dataset(tmp_path, ("a.json", json.dumps(document)), ("a.txt", "text"))) == {"text": "text"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("s1.json", '{"text": ')], r"its \.json is broken: Expecting value"),
        ([("s1.json", json.dumps({"text": {"fr.ca": "oui"}}))], "'text:fr.ca' is not a field"),
        ([("s1.fr.phone.txt", "oui")], "'text:fr.phone' is not a field"),
        ([("s1.grid", "1"), ("s1.grd", "2")], "two members are the field image"),
    ],
)
def test_a_broken_sample_is_one_clear_error_and_does_not_hide_the_others(tmp_path, members, message):
    path = write(tmp_path / "a.tar", ("s0.txt", "first"), *members, ("s2.txt", "last"))
    endings = extensions_of(toys()) | {"grd": "image"}
    found = Dataset("toy", [path], extensions=endings, fields=TEXTS)
    with pytest.raises(ValueError, match=rf"^{path}: s1: {message}"):
        found.fields(1)
    assert [read() for fields in found.readable() for read in fields.values()] == [b"first", b"last"]


def test_if_every_sample_is_broken_the_first_is_named(tmp_path):
    found = dataset(tmp_path, ("a.json", "{"), ("b.json", "}"))
    with pytest.raises(ValueError, match=r"a: its \.json is broken"):
        list(found.readable())


@pytest.mark.parametrize(
    ("field", "place"),
    [("text:*", "json.text"), ("text", "json.*"), ("text:*", "json.text_*"), ("text:*", "*.text"), ("*:*", "json.*.*")],
)
def test_places_that_are_none(tmp_path, field, place):
    with pytest.raises(ValueError, match="must both hold one"):
        dataset(tmp_path, ("a.json", {}), fields={field: place})


def test_a_place_for_what_is_no_field(tmp_path):
    with pytest.raises(ValueError, match="'Text:x' is not a field"):
        dataset(tmp_path, ("a.json", {}), fields={"Text:*": "json.*"})


def test_two_modalities_cannot_own_one_ending():
    class Other(ToyImage):
        name, extensions = "drawing", ("svg", "grid")

    assert extensions_of(toys()) == {"txt": "text", "grid": "image", "snd": "sound"}
    with pytest.raises(ValueError, match=r"'image' and 'drawing' both claim \.grid files: leave one out"):
        extensions_of({"text": ToyText, "image": ToyImage, "drawing": Other, "sound": ToySound})


def test_keys_choose_samples(tmp_path):
    members = [(f"{key}.txt", key) for key in ("digits_1", "digits_2", "letters_a", "hello")]
    found = dataset(tmp_path, *members, keys=["digits_*", "hello"])
    assert [sample.key for sample in found.samples] == ["digits_1", "digits_2", "hello"]
    with pytest.raises(ValueError, match=r"dataset 'toy' has no samples that fit keys=\['x\*'\]"):
        dataset(tmp_path, *members, keys=["x*"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shards": "a.tar", "weigth": 2}, "data.datasets.mine has an unknown 'weigth': did you mean 'weight'?"),
        ({"fields": {}}, "data.datasets.mine names no shards: give a pattern"),
        ("a.tar", "data.datasets.mine='a.tar' is no dataset: write"),
    ],
)
def test_a_config_of_a_dataset_that_is_none(tmp_path, config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_datasets({"mine": config}, toys(), root=str(tmp_path))


def test_one_pattern_of_keys_needs_no_list(tmp_path):
    write(tmp_path / "a.tar", *((f"{key}.json", {}) for key in ("dog/1", "cat/1", "dog/2")))
    (found,) = open_datasets({"a": {"shards": "a.tar", "keys": "dog/*"}}, toys(), root=str(tmp_path)).values()
    assert [it.key for it in found.samples] == ["dog/1", "dog/2"]


def test_a_dataset_without_samples(tmp_path):
    with pytest.raises(ValueError, match="dataset 'toy' has no samples: see its shards"):
        dataset(tmp_path, ("README", "no sample"))


def test_datasets_are_opened_by_split_from_patterns_below_a_root(tmp_path):
    for name in ("b/train-0", "b/train-1", "b/val-0", "a/train-0"):
        write(tmp_path / f"{name}.tar", (f"{name.replace('/', '_')}.txt", name))
    configs = {
        "b": {"shards": "b/{split}-*.tar"},
        "both": {"shards": ["b/{split}-1.tar", "a/{split}-*.tar"], "keys": ["*_train-0"]},
    }
    opened = open_datasets(configs, toys(), root=str(tmp_path))
    keys = {name: [sample.key for sample in found.samples] for name, found in opened.items()}
    assert keys == {"b": ["b_train-0", "b_train-1"], "both": ["a_train-0"]}
    assert list(open_datasets(configs, toys(), root=str(tmp_path), split="val")) == ["b"]


def test_nothing_to_open(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*none' of shards: give data\.root, or build the starter"):
        open_datasets({}, toys(), root=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no dataset has shards of the split 'val' .* looked for \['a'\]"):
        open_datasets({"a": {"shards": "a/{split}-*.tar"}}, toys(), root=str(tmp_path), split="val")


def test_a_shard_that_is_none_does_not_hide_the_others(tmp_path):
    path = write(tmp_path / "a.tar", ("a.txt", "text"))
    (tmp_path / "b.tar").write_bytes(b"an error page" * 100)
    found = Dataset("toy", [path, tmp_path / "b.tar"], extensions=extensions_of(toys()))
    assert [sample.key for sample in found.samples] == ["a"]
    assert found.damage == [f"{tmp_path / 'b.tar'} is not a tar: it has no whole header"]
