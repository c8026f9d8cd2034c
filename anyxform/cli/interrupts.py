"""Signals that ask a run to stop: it ends its step and saves first."""

import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")


class Interrupts:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one kills as usual.

    Ctrl-C and SLURM send them to a whole group of processes, so those that read the data may end as well. So from then
    on SIGCHLD, by which torch's loader raises an error anywhere, is not heard of, and data are not waited for.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        signal.signal(number, self._before[number])
        self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
        if self._waiting:
            raise Interrupted

    def until_one(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items; `Interrupted` is raised where the next is being waited for when a signal comes."""
        stream = iter(items)
        while True:
            self._waiting = True
            try:
                if self.received:  # since the last look at it: the processes that read may be gone
                    raise Interrupted
                item = next(stream, None)
            finally:
                self._waiting = False
            if item is None:
                return
            yield item


class Interrupted(BaseException):
    """A signal came while nothing was under way. No Exception, which torch's loader would make into one of its own."""
