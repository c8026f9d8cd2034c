"""Where shards are: files, HTTP(S), and what else fsspec has a driver for (s3, gs, az, hf, …).

A connection may fail, stall or end early at any moment. Each is tried again, from the byte at which it stopped, after a
delay that doubles and that chance spreads, so that many processes do not come back at once. What fails is logged and
counted. After ANYXFORM_PATIENCE seconds (default 300) without a gain of GAIN bytes it is an error that names the URL
and the cause, or after UNKNOWN seconds where nobody knows the host: it may be misspelt. Patience should be less than
`distributed.timeout`, for which other processes wait.
"""

import http.client
import logging
import math
import os
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand

UNKNOWN = 60.0
"""Seconds after which a host that nobody knows is given up."""
GAIN = 2**20
"""Bytes with which a try, though it failed, was worth it."""
SMALL = 2**28
"""Bytes of the largest file that is read into memory as a whole: an index of a few million samples."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection has stalled."""
DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds: before the second try, and at most."""
CHUNK = 2**18

counts: Counter[str] = Counter()
"""What this process did so far: shards and bytes fetched, tries that failed."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Missing(ValueError):
    """There is nothing of that name."""


class Shard(NamedTuple):
    """A shard's path or URL, its size in bytes, and what is another string when it is written again."""

    name: str
    size: int
    version: str

    def __str__(self) -> str:
        return self.name

    @property
    def remote(self) -> bool:
        return is_remote(self.name)


def is_remote(name: str) -> bool:
    """Whether a name is a URL other than of a file here."""
    return "://" in name


def local(name: str) -> str:
    """``file://`` URLs as paths, everything else as it is."""
    return unquote(urlsplit(name).path) if name.startswith("file://") else name


def patience_bound() -> float:
    """For how many seconds tries go on that gain nothing."""
    text = os.environ.get("ANYXFORM_PATIENCE") or "300"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"ANYXFORM_PATIENCE={text} is not a number of seconds")
    return seconds


def stat(name: str | Path) -> Shard:
    """Look a shard up. `Missing`, a ValueError, if there is none; OSError if its store cannot be asked."""
    name = local(str(name))
    if is_remote(name):
        return _patiently(name, lambda: _driver(name).stat(name))
    if not Path(name).is_file():
        raise Missing(f"there is no shard {name}: see data.root and the pattern of the dataset's shards")
    found = Path(name).stat()
    return Shard(name, found.st_size, str(found.st_mtime_ns))


def exists(name: str) -> bool:
    """Whether there is a shard of that name."""
    if not is_remote(name):
        return Path(name).is_file()
    try:
        return bool(stat(name))
    except Missing:
        return False


def stream(shard: Shard) -> Iterator[bytes]:
    """The bytes of a remote shard, in order, each once, `shard.size` in all. OSError where patience is at its end."""
    done, version, patience = 0, None, _Patience(shard.name)
    while True:
        before = done
        try:
            with _driver(shard.name).open(shard.name, done) as (found, chunks):
                _same(shard, found, version)
                version = found.version
                for data in chunks:
                    done += len(data)
                    if done > shard.size:
                        raise ConnectionError(f"it sends more than its {shard.size:,} bytes")
                    counts["bytes"] += len(data)
                    yield data
            if done == shard.size:
                return
            raise ConnectionError(f"it ended after {done:,} of {shard.size:,} bytes")
        except _FINAL:
            raise
        except _PASSING as error:
            patience.failed(error, gained=done - before)


def small(name: str) -> bytes:
    """The bytes of a small remote file. `Missing` if there is none; ValueError: it is not small."""
    found = stat(name)
    if found.size > SMALL:
        raise ValueError(f"{name} has {found.size:,} bytes, more than the {SMALL:,} that are read at once")
    return b"".join(stream(found))


def without_secrets(text: str) -> str:
    """A text whose URLs have no user names, passwords and queries, which may be signatures."""
    return re.sub(r"(\w+://)(?:[^/@\s]*@)?([^?\s'\"\],]*)(?:\?[^\s'\"\],}]*)?", r"\1\2", text)


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: ``{000..127}`` and ``{a,b}`` are written out, ``*``, ``?`` and ``[`` sought.

    ValueError: braces that do not close, or ``*`` where the store cannot list what it has.
    """
    try:
        written = list(braceexpand(local(pattern)))
    except ValueError as error:
        raise ValueError(f"{pattern!r} is no pattern of shards: {error}") from error
    return [name for one in written for name in (_listed(one) if has_magic(one) else [one])]


def _listed(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob(pattern))
    if pattern.startswith(("http://", "https://")):
        if has_magic(pattern.partition("?")[0]):  # behind it is a query
            raise ValueError(f"{pattern}: HTTP cannot list files: write their numbers as {{000..127}} in place of *")
        return [pattern]
    return _patiently(pattern, lambda: _Fsspec.glob(pattern))


class _Patience:
    """Waits before the next try, as long as those that failed in a row do not take too long together."""

    def __init__(self, name: str) -> None:
        self.name, self.tries, self.since, self.delay = name, 0, 0.0, 0.0

    def failed(self, error: Exception, gained: int = 0) -> None:
        """Wait; where patience is at its end raise an OSError instead."""
        if not self.tries or gained >= GAIN:
            self.tries, self.since, self.delay = 0, time.monotonic(), DELAY
        self.tries += 1
        counts["failed"] += 1
        reason = getattr(error, "reason", "") or error
        cause, bound = str(reason) or type(error).__name__, patience_bound()
        if isinstance(reason, socket.gaierror):
            bound = min(bound, UNKNOWN)
        delay, spent = self.delay * random.uniform(0.5, 1), time.monotonic() - self.since
        left = bound - spent - delay
        if left < 0:
            raise OSError(f"{self.name} cannot be read: {cause} ({self.tries} tries in {spent:.0f} s)") from error
        _log.warning("%s: %s; try %d in %.1f s (for %.0f s more)", self.name, cause, self.tries + 1, delay, left)
        self.delay = min(LONGEST_DELAY, 2 * self.delay)
        time.sleep(delay)


def _patiently(name: str, attempt: Callable[[], _T]) -> _T:
    patience = _Patience(name)
    while True:
        try:
            return attempt()
        except _FINAL:
            raise
        except _PASSING as error:
            patience.failed(error)


def _same(shard: Shard, found: Shard, version: str | None) -> None:
    if found.size != shard.size:
        raise ConnectionError(f"it has {found.size:,} bytes, and had {shard.size:,} before")
    if version not in (None, found.version):
        raise ConnectionError("it was written again while it was read")


_FINAL = (Missing, PermissionError)
_PASSING = (OSError, http.client.HTTPException)  # URLError, time-outs and broken connections are OSErrors
_Opened = AbstractContextManager[tuple[Shard, Iterator[bytes]]]


class _Http:
    @classmethod
    def stat(cls, url: str) -> Shard:
        try:
            with cls._ask(url, "HEAD") as answer:
                return cls._shard(url, answer)
        except PermissionError:  # an address that is signed for GET alone
            with cls._ask(url, "GET") as answer:
                return cls._shard(url, answer)

    @classmethod
    @contextmanager
    def open(cls, url: str, start: int) -> Iterator[tuple[Shard, Iterator[bytes]]]:
        with cls._ask(url, "GET", {"Range": f"bytes={start}-"} if start else {}) as answer:
            skipped = 0 if answer.status == 206 else start  # a server that knows no ranges begins anew
            yield cls._shard(url, answer), _after(iter(lambda: answer.read1(CHUNK), b""), skipped)

    @staticmethod
    def _ask(url: str, method: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **(headers or {})}, method=method)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (404, 410):
                    raise Missing(f"there is no {url} ({error.code} {error.reason})") from error
                if error.code in (401, 403, 405, 501):
                    raise PermissionError(f"{url} may not be read ({error.code} {error.reason})") from error
                raise ConnectionError(f"{error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise PermissionError(f"{url}: {error.reason}") from error
            raise

    @staticmethod
    def _shard(url: str, answer: http.client.HTTPResponse) -> Shard:
        length = answer.headers.get("Content-Length")
        if answer.status == 206:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not re.fullmatch(r"\d+", length or ""):
            raise ConnectionError("the server does not say how long it is")
        return Shard(url, int(str(length)), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


class _Fsspec:
    @classmethod
    def stat(cls, url: str) -> Shard:
        files, path = cls._files(url)
        with cls._errors(url):
            info = files.info(path)
        version = next(
            (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), ""
        )
        return Shard(url, int(info["size"]), version)

    @classmethod
    @contextmanager
    def open(cls, url: str, start: int) -> Iterator[tuple[Shard, Iterator[bytes]]]:
        found, (files, path) = cls.stat(url), cls._files(url)
        with cls._errors(url), files.open(path, "rb") as file:
            file.seek(start)
            yield found, cls._chunks(url, file)

    @classmethod
    def glob(cls, pattern: str) -> list[str]:
        files, path = cls._files(pattern)
        with cls._errors(pattern):
            return sorted(files.unstrip_protocol(found) for found in files.glob(path))

    @classmethod
    def _chunks(cls, url: str, file: IO[bytes]) -> Iterator[bytes]:
        with cls._errors(url):
            yield from iter(lambda: file.read(CHUNK), b"")

    @staticmethod
    def _files(url: str) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise Missing(f"{url} cannot be opened: {error}") from error

    @staticmethod
    @contextmanager
    def _errors(url: str) -> Iterator[None]:
        """Drivers raise what they like: what may pass becomes a ConnectionError."""
        try:
            yield
        except FileNotFoundError as error:
            raise Missing(f"there is no {url}") from error
        except (PermissionError, ConnectionError, Missing):
            raise
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _driver(name: str) -> type[_Http] | type[_Fsspec]:
    return _Http if name.startswith(("http://", "https://")) else _Fsspec


def _after(chunks: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    for data in chunks:
        if skipped < len(data):
            yield data[skipped:]
        skipped = max(0, skipped - len(data))
