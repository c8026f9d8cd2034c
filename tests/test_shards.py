"""The index of a shard: equal to what webdataset reads of a whole one, and better at damage."""

import io
import os
import tarfile
from pathlib import Path
from random import Random

import pytest
import webdataset

from anyxform.shards import BLOCK, index
from benchmarks.damage import OF_SHARDS, written

NOT_SEEN_BY_A_WALK = {"an error page in place of the shard", "an empty file", "a header has a wrong name"}
"""The first two are no tars; the last only who knows what a sample must have."""
OPEN_FILES = Path("/proc/self/fd")


def entry(name, data=b"data"):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def write(path, entries, format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes); the offset of each member's header by name."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in entries:
            info, data = entry(name, data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return {member.name: member.offset for member in tar}


def ours(path):
    return [(s.key, {ending: s.read(ending) for ending in s.members}) for s in index(path).samples]


def theirs(path):
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, handler=webdataset.warn_and_stop)
    return [(s["__key__"], {ending: data for ending, data in s.items() if ending[0] != "_"}) for s in dataset]


def samples(count, size=700):
    """Two members each, of sizes that are no multiple of a block."""
    return [(f"s{n}.{ending}", bytes([n]) * (size + n)) for n in range(count) for ending in ("fr.flac", "json")]


def spoil(path, offset, data=b"\xff" * 64):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_whole_shard_reads_as_webdataset_reads_it(tmp_path, format):
    path = tmp_path / "a.tar"
    odd = [("folder.d/x/a.PNG", b""), ("README", b"no sample"), (".hidden", b"neither"), ("x/b.c.d.txt", b"text")]
    write(path, [*samples(5), *odd, *samples(0)], format)
    assert ours(path) == theirs(path)
    assert [key for key, _ in ours(path)] == ["s0", "s1", "s2", "s3", "s4", "folder.d/x/a", "x/b"]
    assert index(path).damage == []


def test_what_webdataset_writes(tmp_path):
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"k{number}", "en.txt": f"text {number}", "x.json": {"n": number}})
    assert ours(path) == theirs(path) and len(ours(path)) == 3
    assert index(path).damage == []


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, format):
    path, long = tmp_path / "a.tar", "folder/" + "k" * 300
    write(path, [("a.txt", b"1"), (f"{long}.fr.txt", b"2"), (f"{long}.json", b"3"), ("лягушка.txt", b"4")], format)
    assert ours(path) == theirs(path)
    assert ours(path)[1] == (long, {"fr.txt": b"2", "json": b"3"})


def test_links_and_folders_are_no_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.x", tarfile.DIRTYPE), ("l.txt", tarfile.SYMTYPE), ("m" * 200 + ".txt", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "z" * 200
            tar.addfile(info)
        tar.addfile(entry("a.txt")[0], io.BytesIO(b"data"))
    assert ours(path) == [("a", {"txt": b"data"})]


def test_a_broken_header_loses_its_own_sample_and_is_named(tmp_path):
    path = tmp_path / "a.tar"
    headers = write(path, [(f"s{n}.txt", bytes([n]) * 700) for n in range(10)])
    spoil(path, headers["s4.txt"])
    assert [key for key, _ in theirs(path)] == ["s0", "s1", "s2", "s3"]
    found = index(path)
    assert [s.key for s in found.samples] == [f"s{n}" for n in range(10) if n != 4]
    assert ours(path)[4] == ("s5", {"txt": b"\x05" * 700})
    assert len(found.damage) == 1
    assert f"{path}: broken header at byte {headers['s4.txt']}" in found.damage[0]


def test_the_long_name_of_a_lost_member_is_not_given_to_the_next(tmp_path):
    path, long = tmp_path / "a.tar", "k" * 200
    headers = write(path, [("a.txt", b"1"), (f"{long}.txt", b"2"), ("b.txt", b"3")], tarfile.GNU_FORMAT)
    spoil(path, headers[f"{long}.txt"] + 2 * BLOCK)
    assert ours(path) == [("a", {"txt": b"1"}), ("b", {"txt": b"3"})]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (100, "s2.json' is truncated: 612 of 712 bytes are there"),
        (712 + 100, "412 bytes at its end are no tar"),
        (-20, "does not end as a tar does"),
    ],
)
def test_a_truncated_shard_keeps_what_is_whole_and_is_named(tmp_path, lost, message):
    path = tmp_path / "a.tar"
    last = write(path, samples(3, 710))["s2.json"] + BLOCK
    with open(path, "r+b") as file:
        file.truncate(last + 712 - lost)
    found = index(path)
    assert [s.key for s in found.samples] == ["s0", "s1", "s2"]
    assert ours(path)[:2] == [(f"s{n}", {e: bytes([n]) * (710 + n) for e in ("fr.flac", "json")}) for n in (0, 1)]
    assert ("json" in found.samples[2].members) is (lost < 0)
    assert len(found.damage) == 1 and message in found.damage[0] and str(path) in found.damage[0]


@pytest.mark.parametrize("content", [b"", b"only a few words", b"no tar " * 500, b"\x1f\x8b" + b"gzip" * 500])
def test_a_file_that_is_no_tar(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar is not a tar"):
        index(path)


def test_a_missing_shard(tmp_path):
    for path in (tmp_path / "b.tar", tmp_path):
        with pytest.raises(ValueError, match=f"there is no shard {path}: see data.root"):
            index(path)


@pytest.mark.parametrize(
    ("names", "kept", "message"),
    [
        (["a.txt", "b.txt", "a.json"], {"a": ["txt"], "b": ["txt"]}, "'a' do not stand together, or the key is used"),
        (["a.txt", "b.txt", "a.txt"], {"a": ["txt"], "b": ["txt"]}, "'a' do not stand together, or the key is used"),
        (["a.txt", "a.txt", "a.json"], {"a": ["txt", "json"]}, "'a.txt' is there twice"),
        (["a.PNG", "a.png"], {"a": ["png"]}, "'a.png' is there twice"),
        (["a.PNG", "a.PNG"], {"a": ["png"]}, "'a.PNG' is there twice"),
    ],
)
def test_interleaved_and_repeated_keys_are_named_and_the_first_is_kept(tmp_path, names, kept, message):
    path = tmp_path / "a.tar"
    write(path, [(name, bytes([n])) for n, name in enumerate(names)])
    found = index(path)
    assert {s.key: list(s.members) for s in found.samples} == kept
    assert ours(path)[0][1][kept["a"][0]] == bytes([0])
    assert len(found.damage) == 1 and message in found.damage[0] and str(path) in found.damage[0]


def test_a_shard_that_shrank_after_it_was_indexed(tmp_path):
    path = tmp_path / "a.tar"
    write(path, samples(1))
    sample = index(path).samples[0]
    os.truncate(path, 1000)
    with pytest.raises(ValueError, match=rf"{path}: s0\.fr\.flac is truncated \(488 of 700 bytes\)"):
        sample.read("fr.flac")


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="this system does not list open files")
def test_many_shards_do_not_use_up_the_open_files(tmp_path):
    found = []
    for number in range(300):
        write(tmp_path / f"{number}.tar", [("a.txt", str(number).encode())])
        found += index(tmp_path / f"{number}.tar").samples
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(3):
        assert [s.read("txt") for s in found] == [str(number).encode() for number in range(300)]
    assert len(list(OPEN_FILES.iterdir())) - before <= 256


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", sorted({*OF_SHARDS} - NOT_SEEN_BY_A_WALK))
def test_what_damage_did_not_touch_is_read(tmp_path, kind, seed):
    path, chance = tmp_path / "a.tar", Random(seed)
    members = [(f"s{n}", e, chance.randbytes(900 + 7 * n)) for n in range(30) for e in ("json", "webp", "ogg")]
    data, places = written(members)
    touched = OF_SHARDS[kind](data, places, chance)
    path.write_bytes(data)
    intact = {(key, ending, data) for key, ending, data in members if key not in touched}
    assert intact <= {(key, ending, data) for key, found in ours(path) for ending, data in found.items()}
    assert all(line.startswith(str(path)) for line in index(path).damage) and index(path).damage


@pytest.mark.parametrize("spoilt", [b"xx path=", b"999999 path=", b"20 size=many\n"])
def test_a_broken_long_name_is_not_replaced_by_its_beginning(tmp_path, spoilt):
    path, long = tmp_path / "a.tar", "k" * 200
    headers = write(path, [("a.txt", b"1"), (f"{long}.txt", b"2"), ("b.txt", b"3")])
    spoil(path, headers[f"{long}.txt"] + BLOCK, spoilt)
    assert ours(path) == [("a", {"txt": b"1"}), ("b", {"txt": b"3"})]
    assert len(index(path).damage) == 1 and "broken name at byte" in index(path).damage[0]


def test_joined_tars_are_read_to_the_end_but_not_without_a_word(tmp_path):
    write(tmp_path / "a.tar", [("a.txt", b"1")])
    write(tmp_path / "b.tar", [("b.txt", b"2")])
    path = tmp_path / "both.tar"
    path.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert ours(path) == [("a", {"txt": b"1"}), ("b", {"txt": b"2"})]
    assert "zero bytes before byte 10240: samples are lost, or tars were joined" in index(path).damage[0]


def test_a_compressed_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(*[entry("a.txt")[0], io.BytesIO(b"data")])
    with pytest.raises(ValueError, match="is not a tar: it is compressed, unpack it"):
        index(tmp_path / "a.tar")
