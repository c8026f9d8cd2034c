"""The starter: how it is split and what it is read from, and proof that nothing held out is in the training shards."""

import hashlib
import io
import json
import stat
import struct
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyxform.checkpoint import load_modality
from anyxform.cli.conf import compose
from anyxform.data import condition_names
from anyxform.dataset import open_datasets
from anyxform.modality import get_modality
from anyxform.rows import Rows
from anyxform.shards import index
from anyxform.starter.archives import files
from anyxform.starter.build import SPLITS, _split, _write
from anyxform.starter.download import PACKAGES, Package, fetch
from anyxform.starter.draft import SAMPLE_RATE, Draft, outliers, safe_key, trim, webp
from anyxform.starter.gazetteer import _texts
from anyxform.starter.phrases import examples
from anyxform.starter.splits import UnionFind, groups, hold_out, normalised, split_of
from anyxform.starter.spoken import spoken

ROOT = Path(__file__).parents[1] / "data" / "starter"
TOO_LARGE = ("styles", "gazetteer", "spoken", "phrases")
"""Datasets that are built, but not in the repository."""
built = pytest.mark.skipif(
    not (ROOT / "stats.json").is_file(), reason="the starter is not built: anyxform data starter"
)


def draft(caption, media=(), origins=(), dataset="emoji", key=None):
    """A draft whose media are their endings as bytes, unless a dict says otherwise."""
    media = dict(media) if isinstance(media, dict) else {ending: f"{caption} {ending}".encode() for ending in media}
    return Draft(dataset, key or safe_key(caption), {"en": caption}, media, set(origins))


# Splits


@pytest.mark.parametrize(
    ("caption", "same"),
    [
        ("A frog.", "frog"),
        ("The Frog!", "frog"),
        ("some  frogs", "frogs"),
        ("An", "an"),
        ("a-b", "b"),
        ("Ёлка", "ёлка"),
    ],
)
def test_captions_that_mean_the_same_are_normalised_to_the_same(caption, same):
    assert normalised(caption) == same


def test_union_find_joins_all_that_hang_together_whatever_the_order():
    joins = [("d", "c"), ("b", "a"), ("e", "e"), ("c", "b")]
    for pairs in (joins, joins[::-1]):
        sets = UnionFind()
        for pair in pairs:
            sets.join(*pair)
        assert [sets.find(item) for item in "abcdef"] == ["a", "a", "a", "a", "e", "f"]


def test_samples_are_one_group_by_caption_and_by_recording():
    drafts = [
        draft("A frog", key="1"),
        draft("frog!", dataset="stamps", key="1", origins=["x"]),
        draft("toad", dataset="prompts", key="2", origins=["x", "y"]),
        draft("tree", key="2", origins=["z"]),
    ]
    found = groups(drafts)
    assert found["emoji", "1"] == found["stamps", "1"] == found["prompts", "2"] == "frog"
    assert found["emoji", "2"] == "tree"


def test_eight_tenths_are_for_training_and_the_choice_never_changes():
    chosen = [split_of(f"concept {number}") for number in range(2000)]
    assert [round(chosen.count(split) / 2000, 1) for split in ("train", "val", "test")] == [0.8, 0.1, 0.1]
    assert [split_of(word) for word in ("frog", "key", "fox")] == ["train", "test", "val"]


def test_one_style_is_held_out_of_every_concept_another_of_some():
    styles = ["openmoji.webp", "twemoji.webp", "noto.webp", "notov1.webp", "fxemoji.webp"]
    held = [hold_out(draft(f"thing {number}", styles)) for number in range(400)]
    assert all("openmoji.webp" in some for some in held)
    assert 20 < sum("twemoji.webp" in some for some in held) < 60
    assert {frozenset(some) for some in held} == {frozenset(styles[:1]), frozenset(styles[:2])}
    assert all(hold_out(draft(f"thing {number}", styles[1:4])) == set() for number in range(400))


def test_of_some_prompts_one_recording_is_held_out_but_never_the_only_one_nor_an_effect():
    spoken = ["en-phone.ogg", "fr-phone.ogg", "effect.ogg"]
    held = [hold_out(draft(f"prompt {number}", spoken)) for number in range(400)]
    assert {frozenset(some) for some in held} == {frozenset(), frozenset(spoken[:1]), frozenset(spoken[1:2])}
    assert 20 < sum(map(bool, held)) < 60
    assert all(hold_out(draft(f"prompt {number}", spoken[1:])) == set() for number in range(400))


def splits_of(drafts):
    """{split: {(dataset, key): endings}}"""
    return {
        split: {(d.dataset, d.key): set(d.media) for by in _split(drafts).values() for d in by[split]}
        for split in SPLITS
    }


def test_drafts_are_split_by_concept_and_what_is_held_out_moves_to_instance():
    drafts = [draft(f"thing {number}", ["openmoji.webp", "noto.webp"]) for number in range(100)]
    found = splits_of(drafts)
    assert sum(len(found[split]) for split in ("train", "val", "test")) == 100
    assert all(found[split] for split in SPLITS)
    assert set(found["instance"]) == set(found["train"])
    assert set(map(frozenset, found["train"].values())) == {frozenset(["noto.webp"])}
    assert set(map(frozenset, found["instance"].values())) == {frozenset(["openmoji.webp"])}
    assert set(map(frozenset, found["test"].values())) == {frozenset(["openmoji.webp", "noto.webp"])}


def test_equal_pictures_stay_in_one_split_and_the_texts_in_all():
    same = {"openmoji.webp": b"1", "noto.webp": b"2", "fxemoji.webp": b"3"}
    drafts = [draft(f"thing {number}", same) for number in range(60)]
    found = splits_of(drafts)
    assert set(map(frozenset, found["test"].values())) == {frozenset(same)}
    assert found["val"] and found["train"] and not any([*found["val"].values(), *found["train"].values()])
    assert found["instance"] == {}


def test_shards_are_the_same_bytes_for_the_same_drafts(tmp_path):
    drafts = [draft(f"thing {number}", ["noto.webp", "fxemoji.webp"]) for number in range(5)]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train-000007.tar").write_bytes(b"of an earlier build")
    first, second = (_write(drafts, tmp_path / name, "train") for name in "ab")
    assert [path.name for path in first] == [p.name for p in (tmp_path / "a").iterdir()] == ["train-000000.tar"]
    assert first[0].read_bytes() == second[0].read_bytes()
    with tarfile.open(first[0]) as tar:
        assert {member.mtime for member in tar} == {0}
    sample = index(first[0]).samples[3]
    assert set(sample.members) == {"json", "fxemoji.webp", "noto.webp"}
    assert json.loads(sample.read("json"))["text"] == {"en": "thing 3"}
    assert sample.read("noto.webp") == b"thing 3 noto.webp"


# Media


def test_pictures_are_squares_on_white():
    picture = Image.open(io.BytesIO(webp(Image.new("RGBA", (200, 100), (255, 0, 0, 255)))))
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert min(picture.getpixel((32, 4))) > 250 and picture.getpixel((32, 32))[1] < 20
    clear = Image.open(io.BytesIO(webp(Image.new("RGBA", (64, 64), (0, 0, 0, 0)))))
    assert min(clear.getpixel((9, 9))) > 250


def test_silence_is_cut_off_both_ends_but_not_inside():
    tone = np.sin(np.arange(SAMPLE_RATE) / 5).astype(np.float32)
    silence = np.zeros(SAMPLE_RATE, np.float32)
    samples = trim(np.concatenate([silence, tone, silence, tone, silence]))
    assert 3.0 <= len(samples) / SAMPLE_RATE <= 3.2
    assert np.abs(samples[:100]).max() == 0 and np.abs(samples[2000:4000]).max() > 0.9
    assert len(trim(silence[:0])) == 0


def test_durations_that_do_not_go_with_their_texts():
    lengths = list(range(10, 50))
    durations = [0.5 + length / 15 + 0.01 * (length % 3) for length in lengths]
    durations[20] += 6
    assert [n for n, strange in enumerate(outliers(lengths, durations)) if strange] == [20]
    assert outliers([1, 2], [1.0, 90.0]) == [False, False]


# Packages


def packed(members, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        folder = tarfile.TarInfo("./folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ar(members):
    archive = b"!<arch>\n"
    for name, data in members.items():
        archive += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return archive


CONTENT = {"./usr/share/a.txt": b"one", "b.txt": b"two"}
READ = [("usr/share/a.txt", b"one"), ("b.txt", b"two")]


def test_files_of_an_npm_package(tmp_path):
    (tmp_path / "a.tgz").write_bytes(packed(CONTENT))
    assert list(files(tmp_path / "a.tgz")) == READ


@pytest.mark.parametrize("control", [b"even", b"odd"])
def test_files_of_a_debian_package(tmp_path, control):
    members = {"debian-binary": b"2.0\n", "control.tar.gz": control, "data.tar.xz": packed(CONTENT, "w:xz")}
    (tmp_path / "a.deb").write_bytes(ar(members))
    assert list(files(tmp_path / "a.deb")) == READ


def test_a_debian_package_without_data(tmp_path):
    (tmp_path / "a.deb").write_bytes(ar({"debian-binary": b"2.0\n"}))
    with pytest.raises(ValueError, match=r"a\.deb holds no data\.tar: it is not a whole Debian package"):
        list(files(tmp_path / "a.deb"))


BYTES = b"a package"
PACKAGE = Package("npm", "@x/y", "1.0", "x-y-1.0.tgz", hashlib.sha256(BYTES).hexdigest(), "MIT", "a test")


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """Makes a shell script the only npm there is."""

    def install(script):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npm").chmod(stat.S_IRWXU)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return install


def test_a_package_is_downloaded_once(npm, tmp_path):
    npm(f'echo "$@" >> asked; printf "{BYTES.decode()}" > x-y-1.0.tgz')
    cache = tmp_path / "new" / "cache"
    assert [fetch(PACKAGE, cache).read_bytes() for _ in range(2)] == [BYTES, BYTES]
    assert (cache / "asked").read_text() == "pack @x/y@1.0\n"


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize(
    ("client", "program"), [("npm", "npm, .*install Node"), ("apt", "apt-get, .*Debian, whose release 12")]
)
def test_a_missing_client_is_named_with_a_way_out(tmp_path, client, program):
    package = Package(client, "x", "1", "x.deb", "", "MIT", "")
    with pytest.raises(ValueError, match=rf"x\.deb must be downloaded with {program}"):
        fetch(package, tmp_path / "cache")


@pytest.mark.parametrize("script", ["echo no such thing >&2; exit 1", "echo no such thing >&2"])
def test_a_failed_download_says_what_the_client_said(npm, tmp_path, script):
    npm(script)
    with pytest.raises(ValueError, match=r"`npm pack @x/y@1\.0` failed \(no such thing\): run it by hand in .*cache"):
        fetch(PACKAGE, tmp_path / "cache")


def test_the_line_that_says_what_is_wrong_is_told(npm, tmp_path):
    npm("echo npm error code E404 >&2; echo npm error A complete log of this run >&2; echo '   in /logs' >&2; exit 1")
    with pytest.raises(ValueError, match=r"failed \(npm error code E404\)"):
        fetch(PACKAGE, tmp_path / "cache")


def test_other_bytes_are_removed(npm, tmp_path):
    npm("printf other > x-y-1.0.tgz")
    with pytest.raises(ValueError, match=f"not {PACKAGE.sha256}: it is removed, build again to download it anew"):
        fetch(PACKAGE, tmp_path / "cache")
    assert not (tmp_path / "cache" / PACKAGE.file).exists()


def test_every_package_is_pinned_and_has_a_licence():
    assert len({package.file for package in PACKAGES}) == len(PACKAGES) > 20
    assert all(len(package.sha256) == 64 and package.version and package.licence for package in PACKAGES)


# Names


def catalogue(translations):
    """A compiled catalogue of gettext, as bytes."""
    pairs = sorted(
        (a.encode(), b.encode()) for a, b in {"": "Content-Type: text/plain; charset=UTF-8\n", **translations}.items()
    )
    start, tables, strings = 28 + 16 * len(pairs), [], b""
    for side in zip(*pairs):
        for text in side:
            tables.append(struct.pack("<II", len(text), start + len(strings)))
            strings += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0) + b"".join(tables) + strings


def test_names_are_read_from_catalogues_without_what_is_not_written_in_its_language():
    french = {"Moscow": "Moscou", "Lima": "Lima", "A; B": "A; B", "L" * 70: "L", "City in Peru\x04Ica": "Ica"}
    russian = {"Moscow": "Москва", "Lima": "Lima", "City in Peru\x04Ica": "Ика"}
    content = {
        "usr/share/locale/fr/LC_MESSAGES/x.mo": catalogue(french),
        "usr/share/locale/ru/LC_MESSAGES/x.mo": catalogue(russian),
        "usr/share/locale/ru/LC_MESSAGES/y.mo": catalogue({"Lima": "Лима"}),
    }
    assert list(_texts(content, "x.mo")) == [
        {"en": "Ica", "fr": "Ica", "ru": "Ика"},
        {"en": "Lima", "fr": "Lima"},
        {"en": "Moscow", "fr": "Moscou", "ru": "Москва"},
    ]


# Spoken texts


def test_texts_are_said_once_a_language_and_names_of_the_gazetteer_in_one(monkeypatch):
    def tone(language, text):
        return np.sin(np.arange(len(text) * SAMPLE_RATE // 10) / 10).astype(np.float32)

    monkeypatch.setattr("anyxform.starter.spoken._said", tone)
    text = {"en": "a frog", "fr": "une grenouille", "ru": "лягушка", "es": "x" * 100, "de": "y", "it": "z" * 45}
    both = {"en": "Paris", "fr": "Paris"}
    found, other = spoken([Draft("emoji", "1", text), Draft("gazetteer", "2", both), Draft("names", "3", {"ru": "да"})])
    assert (found.dataset, found.key, found.text) == ("spoken", "emoji-1", text)
    assert list(found.media) == ["en-pico.ogg", "fr-pico.ogg"]  # others are too long, too short or have no voice
    assert len(other.media) == 1 and other.key == "gazetteer-2"


def test_phrases_are_said_as_a_dataset_of_their_own(monkeypatch):
    monkeypatch.setattr("anyxform.starter.spoken._said", lambda language, text: np.ones(SAMPLE_RATE, np.float32))
    (found,) = spoken([Draft("phrases", "1", {"en": "the red fish"})])
    assert (found.dataset, found.key, list(found.media)) == ("phrases", "1", ["en-pico.ogg"])


def test_examples_of_words_are_those_of_three_words_and_no_signs():
    entry = '00001740 29 v 01 %s 0 003 | draw air into, and out of; "%s"; "%s" \n'
    data = '  1 a licence that says "as it is here"\n' + entry % ("breathe", "I can breathe better; ", "breathe it")
    data += entry % ("respire", "he had 12 red fish", "The patient is respiring.")
    assert list(examples(data)) == ["I can breathe better", "The patient is respiring"]


# The dataset as it was built


@pytest.fixture(scope="module")
def samples():
    """Every sample as (dataset, split, key, its JSON, its media)."""
    found = []
    for shard in sorted(ROOT.glob("*/*.tar")):
        read = index(shard)
        assert read.damage == []
        for sample in read.samples:
            media = {ending: sample.read(ending) for ending in sample.members if ending != "json"}
            split = shard.name.split("-")[0]
            found.append((shard.parent.name, split, sample.key, json.loads(sample.read("json")), media))
    assert found
    return found


@built
def test_no_concept_of_val_or_test_is_seen_in_training(samples):
    splits = defaultdict(set)
    for _, split, _, document, _ in samples:
        splits[normalised(document["text"]["en"])].add("train" if split == "instance" else split)
    assert [caption for caption, found in splits.items() if len(found) > 1] == []
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


@built
def test_no_picture_and_no_recording_is_in_two_splits(samples):
    splits = defaultdict(set)
    for dataset, split, key, _, media in samples:
        for ending, data in media.items():
            splits[data].add((split, f"{dataset}/{key}.{ending}"))
    shared = [sorted(found) for found in splits.values() if len({split for split, _ in found}) > 1]
    assert shared == [], f"{len(shared)} are: build anew with anyxform data starter"


@built
def test_what_is_held_out_is_not_in_training(samples):
    train = {(dataset, key): media for dataset, split, key, _, media in samples if split == "train"}
    held = {(dataset, key): media for dataset, split, key, _, media in samples if split == "instance"}
    assert not any("openmoji.webp" in media for media in train.values())
    endings = {ending for media in held.values() for ending in media}
    assert {"openmoji.webp", "twemoji.webp", "en-phone.ogg", "fr-tux.ogg"} <= endings
    assert all(media and not media.keys() & train[sample].keys() for sample, media in held.items())


@built
def test_shards_are_small_and_what_the_statistics_say(samples):
    stats = json.loads((ROOT / "stats.json").read_text())
    shards = {str(path.relative_to(ROOT)): path for path in ROOT.glob("*/*.tar")}
    kept = [name for name in stats["shards"] if not name.startswith(TOO_LARGE)]
    assert kept and set(kept) <= shards.keys() <= stats["shards"].keys()
    for name, path in shards.items():  # the synthesizer says nothing twice in quite the same way
        same = hashlib.sha256(path.read_bytes()).hexdigest() == stats["shards"][name]
        assert same or name.startswith("spoken/"), name
    assert sum(shards[name].stat().st_size for name in kept) <= 40_000_000
    there = {dataset for dataset, *_ in samples}
    for dataset, splits in ((name, splits) for name, splits in stats["datasets"].items() if name in there):
        for split, counts in splits.items():
            found = [(document, media) for d, s, _, document, media in samples if (d, s) == (dataset, split)]
            assert counts["samples"] == len(found)
            assert counts.get("text:fr", 0) == sum("fr" in document["text"] for document, _ in found)
            assert counts.get("noto.webp", 0) == sum("noto.webp" in media for _, media in found)


@built
def test_every_dataset_and_package_is_attributed_with_its_licence():
    text = (ROOT / "ATTRIBUTION.md").read_text()
    for package in PACKAGES:
        assert f"| {package.name} | {package.version} | {package.licence} |" in text
    assert all(f"`{dataset}`" in text for dataset in json.loads((ROOT / "stats.json").read_text())["datasets"])


@built
@pytest.mark.slow
def test_rows_of_the_starter_are_full():
    text = ROOT / "tokenizers" / "text"
    modalities = {
        "text": load_modality(text) if text.is_dir() else get_modality("text")(max_length=512),
        "image": get_modality("image")(width=8),
        "audio": get_modality("audio")(width=8),
    }
    config = compose("train", ["data=starter"])["data"]
    datasets = open_datasets(config["datasets"], modalities, root=str(ROOT))
    ids = {name: number for number, name in enumerate(condition_names(datasets, modalities))}
    names = ("directions", "hold_out", "tokens_per_row", "pool", "max_broken")
    rows = Rows(
        datasets,
        modalities,
        ids,
        weights={name: config["datasets"][name]["weight"] for name in datasets},
        **{name: config[name] for name in names},
    )
    for _, position in rows.from_position():
        if position["pool"] == [2]:
            break
    assert rows.padding < 0.02
    assert rows.counts.samples == 2 * config["pool"] and rows.counts.without_direction == 0
