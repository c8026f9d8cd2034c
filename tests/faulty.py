"""An HTTP server of a folder that fails as it is told to: by a list of faults, one for each request, then none."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("500", "503", "reset", "truncate", "stall", "short")
"""An error; no answer; the connection ends or stands still halfway; an answer that is whole, but of something else."""


class Faulty:
    """Where the server is, what it was asked for, and what is to go wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.faults: Iterator[str] = iter(())
        self.asked: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.ranges = self.head = True
        self.lock = threading.Lock()

    def next_fault(self, body: bool) -> str:
        with self.lock:
            fault = next(self.faults, "")
            fault = fault if body or fault.isdigit() or fault == "reset" else ""  # the others are of what is sent
            self.happened[fault] += 1
            return fault


@contextmanager
def serve(folder: Path, stall: float = 1.0) -> Iterator[Faulty]:
    """Serve a folder on a free port of this machine."""
    state = Faulty(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            name = self.path.partition("?")[0]
            path = state.folder / name.lstrip("/")
            with state.lock:
                state.asked[f"{self.command} {name}"] += 1
            fault = state.next_fault(body and path.is_file())
            if fault == "reset":
                self.close_connection = True
                return
            if fault.isdigit():
                return self.send_error(int(fault))
            if not body and not state.head:
                return self.send_error(403)
            if not path.is_file():
                return self.send_error(404)
            data = b"an error page" if fault == "short" else path.read_bytes()
            wanted = self.headers.get("Range")
            start = (
                int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges and fault != "short" else 0
            )
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body:
                self.send(data[start:], fault)

        def send(self, data: bytes, fault: str) -> None:
            half = fault in ("truncate", "stall")
            try:
                self.wfile.write(data[: len(data) // 2] if half else data)
                self.wfile.flush()
            except ConnectionError:  # whoever asked has seen enough
                return
            if fault == "stall":
                time.sleep(stall)
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        server.shutdown()
