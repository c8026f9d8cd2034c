"""Work that several processes share."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_processes(work: Callable[[_T], _R], items: Sequence[_T], workers: int) -> Iterator[_R]:
    """What `work` makes of the items, in the order in which it is done, by so many processes."""
    if workers < 1:
        raise ValueError(f"--workers {workers} is not possible: give 1 or more")
    if min(workers, len(items)) <= 1:
        yield from map(work, items)
        return
    workers = min(workers, len(items))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an error or Ctrl-C does not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process; what is to stop is decided by the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
