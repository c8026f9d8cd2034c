"""From shards to packed rows: order → sample → direction → example → row. Every step depends on (seed, index) alone.

Indices are taken in pools of consecutive ones; each pool is packed by itself, so a pool and a row in it say where to go
on, exactly, whatever the number of workers. Pools are dealt to lanes, one for each row of a step: so processes share
the rows of a step without making those of the others, and the step is the same whatever their number.
"""

import math
import pickle
import signal
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from anyxform import storage
from anyxform.dataset import Dataset, Reader
from anyxform.directions import Directions
from anyxform.field import Direction, Field
from anyxform.modality import Modality
from anyxform.order import Near, Order, rng
from anyxform.sequence import Batch, Example, Source, Target, marker, pack

Position = dict[str, list[int]]
"""``{"pool": [p, …], "row": [r, …]}``: the next row of each lane (see `Rows`)."""
CODES_KEPT = 200_000
"""Targets whose codes a process keeps: they never change."""


def condition_names(datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality]) -> list[str]:
    """Every attribute of a field in these datasets, and every modality's marker: what a target can be asked by."""
    attributes = {
        attribute
        for dataset in datasets.values()
        for fields in dataset.kinds()
        for found in fields
        for attribute in found.attributes
    }
    return [*sorted(attributes), *(marker(name) for name in sorted(modalities))]


def near_shards(datasets: Mapping[str, Dataset]) -> dict[str, Near]:
    """Of the datasets that are read from shard to shard, how."""
    return {n: Near(it.samples.runs, it.shards_at_once) for n, it in datasets.items() if it.shards_at_once}


class Codes:
    """Targets as codes, the last ones kept."""

    def __init__(self, modalities: Mapping[str, Modality], keep: int = CODES_KEPT) -> None:
        self.modalities, self.keep = modalities, keep
        self._kept: OrderedDict[tuple[str, int, Field], Tensor] = OrderedDict()

    def __call__(self, place: tuple[str, int, Field], read: Reader) -> Tensor:
        """Codes ``[T, K]`` of the field at a place (dataset, sample, field)."""
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        modality = self.modalities[place[2].modality]
        with torch.no_grad():
            codes = modality.codes(modality.preprocess(modality.load(read())))
        codes = codes.reshape(len(codes), -1)
        self._kept[place] = codes
        if len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return codes


def source(modality: Modality, value: Any, train: bool = False, generator: torch.Generator | None = None) -> Source:
    """A value as a source of an example; augmented if `train`."""
    tensor = modality.preprocess(value, train=train, generator=generator)
    return Source(modality.name, tensor, modality.source_positions(tensor))


def target(
    modality: Modality, codes: Tensor, generator: torch.Generator | None = None, masked: bool | None = None
) -> Target:
    """Codes ``[T, K]`` as a target. Masked: a share cos(πu/2) of the tokens is hidden, u uniform (arXiv 2202.04200)."""
    hidden = None
    if modality.decoding == "masked" if masked is None else masked:
        share = math.cos(0.5 * math.pi * float(torch.rand((), generator=generator)))
        order = torch.rand(len(codes), generator=generator).argsort()
        hidden = torch.zeros(len(codes), dtype=torch.bool)
        hidden[order[: max(1, math.ceil(share * len(codes)))]] = True
    positions = modality.code_positions(len(codes))
    return Target(modality.name, codes, positions, modality.vocab_size, modality.fixed_length, hidden)


def conditions(wanted: Field) -> tuple[str, ...]:
    """What asks for a field: its attributes, then its modality's marker."""
    return (*wanted.attributes, marker(wanted.modality))


@dataclass
class Counts:
    """What happened to the samples of a pool: how many were used, what was left out, and why."""

    samples: int = 0
    without_direction: int = 0
    broken: int = 0
    reasons: list[str] = field(default_factory=list)
    fetched: Counter[str] = field(default_factory=Counter)
    """See `anyxform.storage.counts`."""

    def add(self, other: "Counts") -> None:
        self.samples += other.samples
        self.without_direction += other.without_direction
        self.broken += other.broken
        self.reasons = (self.reasons + other.reasons)[:100]
        self.fetched += other.fetched


class Examples:
    """The example that stands at a global index."""

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        modalities: Mapping[str, Modality],
        directions: Directions,
        order: Order,
        *,
        train: bool = True,
        condition_dropout: float = 0.1,
        attribute_dropout: float = 0.1,
        other_decoding: float = 0.0,
    ) -> None:
        """`other_decoding`: the share of training targets that are to be decoded in the way that is not their own."""
        if not 0 <= other_decoding <= 1:
            raise ValueError(f"data.other_decoding={other_decoding} is no share: give 0 to 1")
        self.other_decoding = other_decoding
        self.datasets, self.modalities, self.directions, self.order = datasets, modalities, directions, order
        self.train, self.condition_dropout, self.attribute_dropout = train, condition_dropout, attribute_dropout
        self.codes = Codes(modalities)

    def __call__(self, index: int, counts: Counts) -> Example | None:
        """None, counted with its reason, where the sample is broken or has no direction that is trained."""
        draw = self.order[index]
        dataset = self.datasets[draw.dataset]
        sample = dataset.samples[draw.number]
        counts.samples += 1
        where = ""
        try:
            fields = {f: read for f, read in dataset.fields(draw.number).items() if f.modality in self.modalities}
            first, second, *drops = rng(draw.seed).random(8).tolist()
            direction = self.directions.draw(fields, first, second)
            if direction is None:
                counts.without_direction += 1
                return None
            where = f"{sample.shard}: {sample.key} ({direction}): "
            return self._make(draw.dataset, draw.number, fields, direction, draw.seed, drops)
        except ValueError as error:
            counts.broken += 1
            counts.reasons.append(f"{where}{error}")
            return None

    def _make(
        self,
        name: str,
        number: int,
        fields: Mapping[Field, Reader],
        direction: Direction,
        seed: int,
        drops: list[float],
    ) -> Example:
        generator = torch.Generator().manual_seed(seed)
        wanted = direction.target
        codes = self.codes((name, number, wanted), fields[wanted])
        asked = conditions(wanted)
        sources: list[Source] = []
        if self.train and drops[0] < self.attribute_dropout:
            # so that audio:fr and audio can be asked for where the data say audio:fr-phone
            asked = (*wanted.attributes[: int(drops[2] * len(wanted.attributes))], asked[-1])
        if not (self.train and drops[1] < self.condition_dropout):  # else without sources, for guidance
            for found in direction.sources:
                modality = self.modalities[found.modality]
                sources.append(source(modality, modality.load(fields[found]()), self.train, generator))
        modality = self.modalities[wanted.modality]
        masked = (modality.decoding == "masked") != (self.train and drops[3] < self.other_decoding)
        made = target(modality, codes, generator, masked)
        return Example(self.datasets[name].samples[number].key, str(direction), tuple(sources), asked, made)


def balance(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which of these lengths go together into rows of at most `size`: as few rows as fit, evenly full.

    The longest first, each into the emptiest row: every row then holds long and short ones alike, so that no row is of
    one kind, as it would be after sorting.
    """
    count = max(1, math.ceil(sum(lengths) / size))
    longest_first = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    while True:
        rows: list[list[int]] = [[] for _ in range(count)]
        used = [0] * count
        for number in longest_first:
            row = used.index(min(used))
            if used[row] + lengths[number] > size:
                break
            rows[row].append(number)
            used[row] += lengths[number]
        else:
            return [sorted(row) for row in rows if row]
        count += 1


@dataclass(frozen=True)
class RowOptions:
    """How rows are made: tokens of a row, indices of a pool, and whether rows are padded to their full size."""

    tokens_per_row: int = 4096
    pool: int = 1024
    pad: bool = False


def pool_rows(
    examples: Examples, condition_ids: dict[str, int], pool: int, options: RowOptions, seed: int
) -> tuple[list[Batch], Counts]:
    """All rows of one pool, in a shuffled order, and what became of its samples."""
    counts, before = Counts(), storage.counts.copy()
    made = [examples(index, counts) for index in range(pool * options.pool, (pool + 1) * options.pool)]
    fitting: list[Example] = []
    for example in filter(None, made):
        if len(example) > options.tokens_per_row:
            counts.broken += 1
            counts.reasons.append(
                f"{example.key} ({example.direction}): {len(example)} tokens are more than "
                f"data.tokens_per_row={options.tokens_per_row}"
            )
        else:
            fitting.append(example)
    counts.fetched = storage.counts - before
    rows = balance([len(example) for example in fitting], options.tokens_per_row) if fitting else []
    size = options.tokens_per_row if options.pad else None
    packed = [pack([fitting[number] for number in row], condition_ids, size) for row in rows]
    return [packed[i] for i in rng(seed, 3, pool).permutation(len(packed))], counts


class _Pools(IterableDataset[bytes]):
    """Some pools, those of this worker; each as bytes, as tensors sent singly use up file descriptors."""

    def __init__(self, rows: "Rows", starts: Mapping[int, int]) -> None:
        self.rows, self.starts = rows, starts

    def __iter__(self) -> Iterator[bytes]:
        torch.set_num_threads(1)
        info = get_worker_info()
        if info:  # Ctrl-C reaches every process; when to stop is decided by the one that trains
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for pool in islice(self.rows.numbers(self.starts), first, None, step):
            try:
                yield pickle.dumps(self.rows.pool(pool))
            except (ValueError, OSError) as error:  # torch would put its traceback into the message
                yield pickle.dumps(OSError(str(error)) if isinstance(error, OSError) else ValueError(str(error)))
                return


@dataclass
class _Lane:
    """Where a lane stands: at a row of a pool, whose rows are there or not yet, and the pools behind that are."""

    pool: int
    row: int = 0
    rows: list[Batch] = field(default_factory=list)
    waiting: deque[list[Batch]] = field(default_factory=deque)

    def go_on(self, lanes: int) -> None:
        """To its next pool."""
        self.pool, self.row, self.rows = self.pool + lanes, 0, []


class Rows:
    """The endless stream of packed rows for training, with the position behind each.

    Its rows come from `lanes` in turn: lane n is the rows of pools n, n + lanes, n + 2·lanes, … one after another. Only
    those of `own` lanes are made, all by default.

    A share of broken samples above `max_broken`, among at least 200, stops it with a ValueError that names the first.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        modalities: Mapping[str, Modality],
        condition_ids: dict[str, int],
        *,
        directions: Mapping[str, float],
        hold_out: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        tokens_per_row: int = 4096,
        pool: int = 1024,
        pad: bool = False,
        num_workers: int = 0,
        max_broken: float = 0.01,
        condition_dropout: float = 0.1,
        attribute_dropout: float = 0.1,
        other_decoding: float = 0.0,
        train: bool = True,
        lanes: int = 1,
        own: Sequence[int] | None = None,
    ) -> None:
        self.lanes, self.own = lanes, list(range(lanes) if own is None else own)
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        order = Order(sizes, weights, seed, near_shards(datasets))
        self.examples = Examples(
            datasets,
            modalities,
            Directions(directions, hold_out),
            order,
            train=train,
            condition_dropout=condition_dropout,
            attribute_dropout=attribute_dropout,
            other_decoding=other_decoding,
        )
        self.condition_ids, self.seed, self.num_workers, self.max_broken = condition_ids, seed, num_workers, max_broken
        self.options = RowOptions(tokens_per_row, pool, pad)
        self.counts = Counts()
        self.tokens = Counter[str]()
        self._check(datasets)

    def _check(self, datasets: Mapping[str, Dataset]) -> None:
        damage = [line for dataset in datasets.values() for line in dataset.damage]
        self.counts.reasons += damage[:100]
        if damage and self.max_broken < 1:  # how many samples are lost nobody knows
            more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
            raise ValueError(
                f"{damage[0]}{more}: copy the shard again or leave it out, or take what is read by data.max_broken=1"
            )
        kinds = {
            tuple(found for found in fields if found.modality in self.examples.modalities)
            for dataset in datasets.values()
            for fields in islice(dataset.kinds(), 200)
        }
        if not any(self.examples.directions.fitting(fields) for fields in kinds):
            raise ValueError(
                f"no sample has a direction that fits data.directions={list(self.examples.directions.weights)}: "
                f"the data have {sorted({str(f) for fields in kinds for f in fields})[:20]}"
            )

    @property
    def padding(self) -> float:
        """The share of full rows' tokens, so far, that no example filled."""
        return 1 - self.tokens["used"] / max(1, self.tokens["size"])

    def pool(self, number: int) -> tuple[list[Batch], Counts]:
        return pool_rows(self.examples, self.condition_ids, number, self.options, self.seed)

    def from_position(self, position: Position | None = None) -> Iterator[tuple[Batch, Position]]:
        """Rows from a position on, each with the position behind it; for lanes of others it stays what it was."""
        lanes = self._start(position)
        pools = self._pools({number: lanes[number].pool for number in self.own})
        for lane in cycle(lanes[number] for number in self.own):
            while not lane.rows:
                while not lane.waiting:
                    number, made = next(pools)
                    lanes[number % self.lanes].waiting.append(made)
                lane.rows = lane.waiting.popleft()
                if not lane.rows:
                    lane.go_on(self.lanes)
            batch = lane.rows[lane.row]
            lane.row += 1
            if lane.row == len(lane.rows):
                lane.go_on(self.lanes)
            yield batch, {"pool": [it.pool for it in lanes], "row": [it.row for it in lanes]}

    def _start(self, position: Position | None) -> list["_Lane"]:
        if position is None:
            return [_Lane(number) for number in range(self.lanes)]
        pool, row = ([it] if isinstance(it, int) else it for it in (position["pool"], position["row"]))
        if len(pool) != self.lanes:
            raise ValueError(
                f"the run had train.rows_per_step={len(pool)}, not {self.lanes}: resume with that, "
                "or start anew in another run_dir"
            )
        return [_Lane(*it) for it in zip(pool, row)]

    def numbers(self, starts: Mapping[int, int]) -> Iterator[int]:
        """The pools of these lanes in the order of their numbers, each lane's from its start on."""
        return (
            number for number in count(min(starts.values())) if number >= starts.get(number % self.lanes, number + 1)
        )

    def _pools(self, starts: Mapping[int, int]) -> Iterator[tuple[int, list[Batch]]]:
        empty = 0
        for number, (rows, counts) in zip(self.numbers(starts), self._made(starts)):
            self._count(rows, counts)
            empty = 0 if rows else empty + 1
            if empty == 10:
                raise ValueError(
                    f"{10 * self.options.pool} samples in a row gave nothing to train on: {self._reasons()}"
                )
            yield number, rows

    def _made(self, starts: Mapping[int, int]) -> Iterator[tuple[list[Batch], Counts]]:
        if self.num_workers == 0:
            yield from map(self.pool, self.numbers(starts))
        loader = DataLoader(
            _Pools(self, starts),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=1,
            multiprocessing_context="spawn",  # forked children of a process that has used OpenMP may hang
        )
        for data in loader:  # workers take turns, so pools come in order
            found = pickle.loads(data)
            if isinstance(found, Exception):
                raise found
            yield found

    def _count(self, rows: list[Batch], counts: Counts) -> None:
        self.tokens.update(used=sum(row.num_tokens for row in rows), size=len(rows) * self.options.tokens_per_row)
        self.counts.add(counts)
        broken, samples = self.counts.broken, self.counts.samples
        if samples >= 200 and broken > self.max_broken * samples:
            raise ValueError(
                f"{broken} of {samples} samples are broken, more than data.max_broken={self.max_broken:g}: "
                f"{self._reasons()}"
            )

    def _reasons(self) -> str:
        return "; ".join(self.counts.reasons[:3]) or "no sample has a direction that is trained"


def merged(positions: Sequence[Position]) -> Position:
    """The position of a run from those of its processes, in the order of their ranks: each knows of its own lanes."""
    size = len(positions)
    lanes = range(len(positions[0]["pool"]))
    return {name: [positions[lane % size][name][lane] for lane in lanes] for name in ("pool", "row")}
