"""From examples to packed rows, in lanes that processes share: where a run stands is a pool and a row for each lane.

Indices are taken in pools of consecutive ones; each pool is packed by itself, so a pool and a row in it say where to go
on, exactly, whatever the number of workers. Pools are dealt to lanes, one for each row of a step: so processes share
the rows of a step without making those of the others, and the step is the same whatever their number.
"""

import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from anyxform import storage
from anyxform.data import Counts, Examples, Share, near_shards
from anyxform.dataset import Dataset, check_cache
from anyxform.directions import Directions
from anyxform.modality import Modality
from anyxform.order import Order, rng
from anyxform.sequence import Batch, Example, pack

Position = dict[str, list[int]]
"""``{"pool": [p, …], "row": [r, …]}``: the next row of each lane (see `Rows`)."""


def balance(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which of these lengths go together into rows of at most `size`: as few rows as fit, evenly full if possible."""
    longest_first = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    tight = _best_fit(lengths, longest_first, size)
    for fewest in range(max(1, math.ceil(sum(lengths) / size)), len(tight) + 1):
        if (rows := _spread(lengths, longest_first, size, fewest)) is not None:
            return rows
    return tight


def _spread(lengths: Sequence[int], order: Sequence[int], size: int, count: int) -> list[list[int]] | None:
    """So many rows, each length into the emptiest; None: they do not fit so.

    Every row then holds long and short ones alike, so that no row is of one kind, as it would be after sorting.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    used = [0] * count
    for number in order:
        row = used.index(min(used))
        if used[row] + lengths[number] > size:
            return None
        rows[row].append(number)
        used[row] += lengths[number]
    return [sorted(row) for row in rows if row]


def _best_fit(lengths: Sequence[int], order: Sequence[int], size: int) -> list[list[int]]:
    """Each length into the fullest row that has room for it."""
    rows: list[list[int]] = []
    used: list[int] = []
    for number in order:
        fitting = [row for row, there in enumerate(used) if there + lengths[number] <= size]
        if fitting:
            row = max(fitting, key=lambda row: used[row])
            rows[row].append(number)
            used[row] += lengths[number]
        else:
            rows.append([number])
            used.append(lengths[number])
    return [sorted(row) for row in rows]


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


class _Pickler(pickle.Pickler):
    """Tensors as arrays: torch writes a file for each, which takes several times as long to read again."""

    def reducer_override(self, it: Any) -> Any:
        if type(it) is Tensor and it.dtype is not torch.bfloat16:  # which numpy has not
            return torch.from_numpy, (it.numpy(),)
        return NotImplemented


def _pickled(found: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(found)
    return buffer.getvalue()


def _context(modalities: Mapping[str, Modality]) -> BaseContext:
    """Workers are forked from a process that has imported what they need and done nothing else, where that is possible.

    So the imports take their seconds once, not once a worker; and forked children of this process, which has used
    OpenMP, might hang.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    packages = tuple({type(it).__module__.partition(".")[0] for it in modalities.values()})
    theirs = [name for name in sys.modules if name.partition(".")[0] in packages]
    context.set_forkserver_preload(["anyxform.rows", *theirs])
    resource_tracker.ensure_running()  # first, as it unblocks the signal where it starts
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited: see `_leave_group`
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    return context


def _leave_group() -> None:
    """Let signals to a run's group of processes, such as torchrun's, be those of the process that trains.

    It then does its step, for which it needs rows; one to a worker alone still ends it.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_with_parent() -> None:
    """End this process as soon as the one that trains has: torch looks to the one that it was forked from."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Pools(IterableDataset[bytes]):
    """Some pools, those of this worker; each as bytes, as tensors sent singly use up file descriptors."""

    def __init__(self, rows: "Rows", starts: Mapping[int, int]) -> None:
        self.rows, self.starts = rows, starts
        self.environment = dict(os.environ)  # workers' origin may have begun under another

    def __iter__(self) -> Iterator[bytes]:
        torch.set_num_threads(1)
        info = get_worker_info()
        if info:  # Ctrl-C reaches every process; when to stop is decided by the one that trains
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _leave_group()
            os.environ.update(self.environment)
            Thread(target=_end_with_parent, daemon=True).start()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for pool in islice(self.rows.numbers(self.starts), first, None, step):
            try:
                yield _pickled(self.rows.pool(pool))
            except (ValueError, OSError) as error:  # torch would put its traceback into the message
                yield _pickled(OSError(str(error)) if isinstance(error, OSError) else ValueError(str(error)))
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
        other_decoding: Share = 0.0,
        aligned: Sequence[str] = (),
        train: bool = True,
        lanes: int = 1,
        own: Sequence[int] | None = None,
    ) -> None:
        check_cache(datasets)
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
            aligned=aligned,
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
                if lane.row >= len(lane.rows):  # none, or fewer than before the mixture was changed
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

    def check(self, position: Position | None) -> None:
        """ValueError: no stream of these rows can begin at the position."""
        self._start(position)

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
            pin_memory=torch.cuda.is_available(),  # for its thread, in which pools arrive during the steps
            multiprocessing_context=_context(self.examples.modalities),
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
