"""Shards elsewhere: a server that fails, stalls and cuts off costs time and no byte; what stays wrong is said."""

import json
import multiprocessing
import os
import random
import socket
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from anyxform import shard_files, shards, storage
from anyxform.data import condition_names
from anyxform.dataset import Dataset, check_cache, extensions_of, open_datasets, shards_of
from anyxform.rows import Rows
from anyxform.shard_index import name_beside, open_index, write_beside
from anyxform.shards import index
from tests.faulty import FAULTS, serve
from tests.test_data import plain, sample, shard
from tests.toy import toys

TEXTS = {"text:*": "json.text.*"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "DELAY", 0.001)
    monkeypatch.setattr(storage, "LONGEST_DELAY", 0.002)
    monkeypatch.setattr(storage, "TIMEOUT", 0.3)
    monkeypatch.setenv("ANYXFORM_CACHE", str(tmp_path / "cache"))
    storage.counts.clear()


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were waited between tries: 1, then twice as many up to 30; they pass at once."""
    passed = []
    monkeypatch.setattr(storage, "time", SimpleNamespace(monotonic=lambda: sum(passed), sleep=passed.append))
    monkeypatch.setattr(storage.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(storage, "DELAY", 1.0)
    monkeypatch.setattr(storage, "LONGEST_DELAY", 30.0)
    return passed


@pytest.fixture
def server(tmp_path):
    """Six shards of a toy dataset, with a file of noise."""
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(6):
        shard(folder / f"t-{number:02d}.tar", [sample(number * 7 + place) for place in range(7)])
    (folder / "noise").write_bytes(random.Random(0).randbytes(300_000))
    with serve(folder, stall=0.6) as found:
        yield found


def fetched(server, name="noise"):
    return b"".join(storage.stream(storage.stat(f"{server.url}/{name}")))


def rows(datasets, **options):
    ids = {name: number for number, name in enumerate(condition_names(datasets, toys()))}
    return Rows(datasets, toys(), ids, directions={"*>*": 1.0}, tokens_per_row=128, pool=16, seed=3, **options)


def dataset(names, **options):
    return Dataset("t", names, extensions=extensions_of(toys()), fields=TEXTS, **options)


def urls(server, names="t-{00..05}.tar"):
    return storage.expand(f"{server.url}/{names}")


# One transfer


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_a_try_and_no_byte(server, fault, ranges):
    server.ranges = ranges
    found = storage.stat(f"{server.url}/noise")
    server.faults = iter([fault, fault])
    assert b"".join(storage.stream(found)) == (server.folder / "noise").read_bytes()
    assert storage.counts["failed"] == 2 == server.happened[fault]


def test_a_transfer_goes_on_where_it_was_cut_off(server):
    server.faults = iter(["", "truncate", "truncate"])
    assert fetched(server) == (server.folder / "noise").read_bytes()
    assert storage.counts["bytes"] == 300_000


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("503", "503 Service Unavailable"),
        ("reset", "closed connection"),
        ("stall", "timed out"),
        ("short", "it has 13 bytes, and had 300,000 before"),
    ],
)
def test_after_the_last_try_the_address_and_the_cause_are_named(server, fault, cause, caplog, monkeypatch, slept):
    monkeypatch.setenv("ANYXFORM_PATIENCE", "3")
    found = storage.stat(f"{server.url}/noise")
    server.faults = cycle([fault])
    with pytest.raises(OSError, match=rf"^{server.url}/noise cannot be read: .*{cause}.* \(3 tries in 3 s\)$"):
        list(storage.stream(found))
    assert len(caplog.messages) == 2 and all(f"{server.url}/noise: " in line for line in caplog.messages)


def test_tries_go_on_for_minutes(server, slept):
    """Through the restart of a store, say; not so long that other processes give this one up."""
    server.faults = cycle(["503"])
    with pytest.raises(OSError, match=r"503 Service Unavailable \(14 tries in 271 s\)$"):
        fetched(server)
    assert slept == [1, 2, 4, 8, 16, *[30] * 8]
    server.faults = iter(["503"] * 13)
    assert fetched(server) == (server.folder / "noise").read_bytes()


def test_a_host_that_nobody_knows_is_not_waited_for_as_long(slept, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match=r"Name or service not known \(6 tries in 31 s\)$"):
        storage.stat("http://far.example/a.tar")
    assert slept == [1, 2, 4, 8, 16]


def test_patience_that_is_none(server, monkeypatch):
    server.faults = cycle(["503"])
    for text in ("long", "-1", "nan"):
        monkeypatch.setenv("ANYXFORM_PATIENCE", text)
        with pytest.raises(ValueError, match=f"ANYXFORM_PATIENCE={text} is not a number of seconds"):
            fetched(server)


def test_what_is_cut_off_again_and_again_without_gain_is_given_up(server, monkeypatch, slept):
    monkeypatch.setenv("ANYXFORM_PATIENCE", "3")
    server.faults = iter(["", *["truncate"] * 3])
    with pytest.raises(OSError, match=r"it ended after 262,500 of 300,000 bytes \(3 tries in 3 s\)"):
        fetched(server)
    monkeypatch.setattr(storage, "GAIN", 1)
    server.faults = iter(["", *["truncate"] * 6])
    assert fetched(server) == (server.folder / "noise").read_bytes()


def test_what_is_not_there_or_forbidden_is_not_tried_again(server):
    with pytest.raises(storage.Missing, match=rf"there is no {server.url}/none \(404"):
        storage.stat(f"{server.url}/none")
    server.faults = iter(["403", "403"])
    with pytest.raises(PermissionError, match="may not be read"):
        storage.stat(f"{server.url}/noise")
    assert storage.counts["failed"] == 0


def test_a_server_that_does_not_answer_head(server):
    server.head = False
    assert storage.stat(f"{server.url}/noise").size == 300_000


def test_a_file_that_is_written_again_while_it_is_read(server, monkeypatch):
    monkeypatch.setenv("ANYXFORM_PATIENCE", "0.002")
    stream = storage.stream(storage.stat(f"{server.url}/noise"))
    server.faults = iter(["truncate"])
    next(stream)
    os.utime(server.folder / "noise", (0, 0))
    with pytest.raises(OSError, match="written again while it was read"):
        list(stream)


def test_other_stores_by_their_drivers():
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/a/x-0.tar", b"zero")
    fsspec.filesystem("memory").pipe("/bucket/a/x-1.tar", b"one")
    names = storage.expand("memory://bucket/a/x-*.tar")
    assert names == ["memory:///bucket/a/x-0.tar", "memory:///bucket/a/x-1.tar"]
    assert [b"".join(storage.stream(storage.stat(name))) for name in names] == [b"zero", b"one"]
    with pytest.raises(storage.Missing, match="there is no memory://bucket/none"):
        storage.stat("memory://bucket/none")
    with pytest.raises(ValueError, match=r"nosuch://x cannot be opened: .*nosuch"):
        storage.stat("nosuch://x")


# Patterns


def test_patterns(server, tmp_path):
    config = {"shards": ["t-{00..02}.tar", f"{server.url}/{{split}}-05.tar"]}
    below, above = [f"{server.url}/t-0{n}.tar" for n in range(3)], [f"{server.url}/t-05.tar"]
    assert shards_of(config, server.url, "t") == below + above
    assert shards_of(config, server.url, "val") == below
    assert shards_of({"shards": "t-*.tar*"}, str(server.folder), "") == sorted(map(str, server.folder.glob("*.tar")))
    assert shards_of({"shards": f"file://{server.folder}/t-{{00,03}}.tar"}, "elsewhere", "") == [
        str(server.folder / f"t-0{n}.tar") for n in (0, 3)
    ]
    for root in (server.url, str(server.folder)):
        with pytest.raises(ValueError, match=r"t-06\.tar is missing, and 1 more of 8 in 't-\{00\.\.07\}\.tar'"):
            shards_of({"shards": "t-{00..07}.tar"}, root, "t")
    with pytest.raises(ValueError, match=r"HTTP cannot list files: write their numbers as \{000\.\.127\}"):
        shards_of({"shards": "t-*.tar"}, server.url, "t")
    with pytest.raises(ValueError, match="is no pattern of shards"):
        shards_of({"shards": "t-{00..07.tar"}, str(tmp_path), "t")


# The cache


def test_the_cache_stays_within_its_bound_and_forgets_what_was_used_longest_ago(server, monkeypatch):
    found = [storage.stat(url) for url in urls(server)]
    monkeypatch.setenv("ANYXFORM_CACHE_GB", str(3 * found[0].size / 1e9))
    paths = [shard_files.fetch(each) for each in found[:3]]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    assert shard_files.fetch(found[0]) == paths[0]  # used again
    fourth = shard_files.fetch(found[3])
    kept = set((shard_files.cache_folder() / "shards").glob("*.tar"))
    assert kept == {paths[0], paths[2], fourth}
    assert fourth.read_bytes() == (server.folder / "t-03.tar").read_bytes()
    monkeypatch.setenv("ANYXFORM_CACHE_GB", "0.000001")
    with pytest.raises(ValueError, match="more than ANYXFORM_CACHE_GB lets"):
        shard_files.fetch(found[4])


def test_what_a_killed_process_left_is_no_shard_and_is_removed(server):
    found = [storage.stat(url) for url in urls(server)[:2]]
    folder = shard_files.cache_folder() / "shards"
    path = shard_files.fetch(found[0])
    path.write_bytes(b"cut off")
    left = folder / "other.part"
    left.write_bytes(b"half of something")
    assert shard_files.fetch(found[0]).read_bytes() == (server.folder / "t-00.tar").read_bytes()
    assert shard_files.fetch(found[1]).stat().st_size == found[1].size
    assert not left.exists() and not list(folder.glob("*.part"))


def _fetch(cache, found):
    os.environ["ANYXFORM_CACHE"] = cache
    return shard_files.fetch(found).read_bytes()


def test_one_process_fetches_what_several_wait_for(server):
    server.faults = iter(["", "stall"])
    found = storage.stat(f"{server.url}/noise")
    work = (str(shard_files.cache_folder()), found)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert set(pool.starmap(_fetch, [work] * 3)) == {(server.folder / "noise").read_bytes()}
    assert server.asked["GET /noise"] == 2  # the one that stalled, and the one that went on


def test_what_the_cache_drops_before_it_is_open_is_fetched_again(server, monkeypatch):
    fetch, gone = shard_files.fetch, iter([True, False])

    def dropped(found):
        path = fetch(found)
        if next(gone):
            path.unlink()
        return path

    for module in (shard_files, shards):
        monkeypatch.setattr(module, "fetch", dropped, raising=False)
    assert len(index(urls(server)[0], contents=True).samples) == 7


# Training


def test_rows_from_a_faulty_server_are_those_of_the_same_shards_here(server):
    here = dataset(sorted(server.folder.glob("*.tar")), shards_at_once=2)
    expected = [plain(row) for row, _ in islice(rows({"t": here}).from_position(), 24)]
    chance = random.Random(1)
    server.faults = (chance.choice(FAULTS) if chance.random() < 0.4 else "" for _ in cycle([0]))
    there = rows({"t": dataset(urls(server), shards_at_once=2)})
    assert [plain(row) for row, _ in islice(there.from_position(), 24)] == expected
    assert storage.counts["failed"] == sum(server.happened[fault] for fault in FAULTS) > 5
    assert there.counts.broken == 0 and not there.counts.reasons


def test_workers_read_a_shard_elsewhere_though_there_are_fewer_shards_than_workers(server):
    names = urls(server, "t-00.tar")
    alone, shared = (rows({"t": dataset(names)}, num_workers=number) for number in (0, 3))
    expected = [plain(row) for row, _ in islice(alone.from_position(), 8)]
    server.asked.clear()
    assert [plain(row) for row, _ in islice(shared.from_position(), 8)] == expected
    assert not server.asked["GET /t-00.tar"]  # it is in the cache that processes share


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("503", r"{url}/t-\d\d\.tar cannot be read: 503 Service Unavailable \(\d+ tries in \d s\)"),
        ("404", r"there is no {url}/t-\d\d\.tar \(404 Not Found\)"),
    ],
)
def test_a_shard_that_cannot_be_had_any_more_stops_the_run_by_name(server, monkeypatch, fault, said):
    """Its samples are not broken, of which a run leaves out some."""
    found = rows({"t": dataset(urls(server))})
    for path in (shard_files.cache_folder() / "shards").glob("*.tar"):
        path.unlink()
    shard_files._files._open.clear()
    monkeypatch.setenv("ANYXFORM_PATIENCE", "0.002")
    server.faults = cycle([fault])
    with pytest.raises(OSError, match=said.format(url=server.url)):
        next(found.from_position())


def test_remote_shards_are_read_one_after_another(server):
    found = rows({"t": dataset(urls(server), shards_at_once=1)})
    order = [found.examples.datasets["t"].samples[found.examples.order[i].number].shard.name for i in range(42)]
    last = {name: max(i for i, it in enumerate(order) if it == name) for name in order}
    first = {name: order.index(name) for name in order}
    assert all(sum(first[name] <= i <= last[name] for name in first) <= 3 for i in range(42))
    assert sorted(order) == sorted(name for name in first for _ in range(7))


def test_a_cache_that_cannot_hold_what_is_read_at_once(server, monkeypatch):
    """Of all datasets together."""
    sizes = [storage.stat(url).size for url in urls(server)]
    configs = {
        "a": {"shards": "t-{00..03}.tar", "shards_at_once": 2},
        "b": {"shards": "t-{04..05}.tar", "shards_at_once": 1},
    }

    def opened(*names, room):
        monkeypatch.setenv("ANYXFORM_CACHE_GB", str(room / 1e9))
        datasets = open_datasets({name: configs[name] for name in names}, toys(), root=server.url)
        check_cache(datasets)
        return datasets

    room = sum(sorted(sizes[:4])[-3:] + sizes[4:])
    assert len(opened("a", "b", room=room + 1)) == 2
    said = r"read at once \(a 2 \+ 1, b 1 \+ 1\) take 0\.0 GB, more than ANYXFORM_CACHE_GB allows"
    with pytest.raises(ValueError, match=said):
        opened("a", "b", room=room - 1)
    assert opened("a", room=room - 1) and opened("b", room=room - 1)
    configs["b"] = configs["a"]  # no shard is there twice
    assert len(opened("a", "b", room=sum(sizes[:4]) + 1)) == 2


# Indices


def test_an_index_beside_a_shard_is_all_that_is_read_to_open_it(server):
    for path in server.folder.glob("*.tar"):
        write_beside(storage.stat(path), index(path, contents=True))
    datasets = open_datasets({"t": {"shards": "t-{00..05}.tar", "fields": TEXTS}}, toys(), root=server.url)
    assert condition_names(datasets, toys()) == ["en", "fr", "line", "phone", "to:image", "to:sound", "to:text"]
    assert {request for request in server.asked if request.startswith("GET")} == {
        f"GET /t-{number:02d}.tar.index" for number in range(6)
    }
    server.asked.clear()
    open_index(f"{server.url}/t-00.tar")
    assert server.asked == {"HEAD /t-00.tar": 1}  # its index was kept
    assert json.loads(datasets["t"].samples[0].read("json")) == sample(0)["json"]
    assert server.asked["GET /t-00.tar"] == 1


def test_a_shard_elsewhere_that_was_written_again_has_another_index(server):
    first = open_index(f"{server.url}/t-00.tar")
    shard(server.folder / "t-00.tar", [sample(number) for number in range(9)])
    os.utime(server.folder / "t-00.tar", (0, 0))
    assert (len(first.samples), len(open_index(f"{server.url}/t-00.tar").samples)) == (7, 9)


def test_an_index_beside_a_shard_elsewhere_that_does_not_fit_is_named(server):
    path = server.folder / "t-00.tar"
    write_beside(storage.stat(path), index(path))
    shard(path, [sample(number) for number in range(40)])
    found = open_index(f"{server.url}/t-00.tar")
    assert len(found.samples) == 40
    assert len(found.damage) == 1 and "the index beside it was made of 30,720 bytes, it has 133,120" in found.damage[0]


def test_names_beside_signed_addresses():
    assert name_beside("https://x/a.tar?sig=1") == "https://x/a.tar.index?sig=1"
    assert name_beside(str(Path("a b") / "c?.tar")) == "a b/c?.tar.index"
