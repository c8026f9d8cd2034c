"""The demo's slice: real parts of the starter, and nothing that is judged is in training."""

import io
import json
from pathlib import Path

import pytest
import soundfile

from anyxform.demo.slice import BY_TURNS, COUNTS, DIGITS, GAP, LANGUAGES, write_slice
from anyxform.shards import index

STARTER = Path("data/starter")
pytestmark = pytest.mark.skipif(not (STARTER / "stats.json").exists(), reason="needs the starter dataset")


@pytest.fixture(scope="module")
def slice_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slice")
    write_slice(STARTER, folder)
    return folder


def samples(folder: Path, name: str, split: str):
    return index(folder / name / f"{split}-000000.tar").samples


def texts(sample):
    return json.loads(sample.read("json"))["text"]


def test_it_holds_many_things_and_numbers_in_its_languages(slice_folder):
    assert 30 <= len(samples(slice_folder, "pictures", "train")) <= 60
    for split, count in COUNTS.items():
        assert len(samples(slice_folder, "numbers", split)) == count
    for sample in samples(slice_folder, "numbers", "train")[:20]:
        assert set(texts(sample)) == set(LANGUAGES)
        assert {f"{language}-phone.flac" for language in LANGUAGES} <= sample.members.keys()


def test_no_number_is_in_two_splits(slice_folder):
    strings = [texts(sample)["en"] for split in COUNTS for sample in samples(slice_folder, "numbers", split)]
    assert len(strings) == len(set(strings))


def test_no_drawing_is_in_two_splits(slice_folder):
    train, instance = (
        {(s.key, ending) for s in samples(slice_folder, "pictures", split) for ending in s.members if ending != "json"}
        for split in ("train", "instance")
    )
    assert train and instance and not train & instance
    assert not any(ending.startswith("openmoji") for _, ending in train)
    styles = [ending for _, ending in instance]
    assert styles.count("openmoji.webp") > 30
    assert all(styles.count(f"{style}.webp") >= 10 for style in BY_TURNS)
    pixels = [
        {s.read(ending) for s in samples(slice_folder, "pictures", split) for ending in s.members if ending != "json"}
        for split in ("train", "instance")
    ]
    assert not pixels[0] & pixels[1]


def test_a_number_sounds_as_long_as_its_digits(slice_folder):
    digits = {}
    for shard in sorted((STARTER / "prompts").glob("*.tar")):
        for sample in index(shard).samples:
            if sample.key in DIGITS and "en-phone.ogg" in sample.members:
                digits[texts(sample)["en"]] = soundfile.info(io.BytesIO(sample.read("en-phone.ogg"))).duration
    for sample in samples(slice_folder, "numbers", "instance")[:10]:
        audio = soundfile.info(io.BytesIO(sample.read("en-phone.flac")))
        words = texts(sample)["en"].split()
        assert audio.duration == pytest.approx(sum(digits[word] for word in words) + GAP * (len(words) - 1), abs=0.01)


def test_missing_digits_are_named(tmp_path):
    (tmp_path / "prompts").mkdir()
    with pytest.raises(ValueError, match=r"lack .*digits_0"):
        write_slice(tmp_path, tmp_path / "out")
    assert DIGITS[0] == "digits_0"
