"""A file server on 127.0.0.1 that misbehaves as it is told, and counts what it sends."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

HTML = b"<!DOCTYPE html>\n<html><body>Please log in to the hotel network.</body></html>\n"


@dataclass
class Fault:
    """One misbehaviour, for one answer."""

    kind: str
    after: int = 0
    """Bytes of the body that are sent before it happens."""
    retry_after: str | None = None


Script = Callable[[int], Fault | None]
"""From the number of a request to what goes wrong with its answer."""


def well_behaved(number: int) -> Fault | None:
    return None


@dataclass
class ServedFile:
    """A file, and what the server says of it."""

    content: bytes
    etag: str | None = '"one"'
    last_modified: str | None = None
    has_ranges: bool = True


@dataclass
class FaultyServer:
    """Serves `files` by path; every request is numbered, and `script` says what goes wrong with its answer."""

    files: dict[str, ServedFile]
    script: Script = well_behaved
    stall_s: float = 1.0
    bytes_per_s: float | None = None
    """For all connections together."""
    later: ServedFile | None = None
    """What the path `/file` serves from the fault `change` on."""
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of body bytes that were sent, in right and in cut answers."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> FaultyServer:
        self._lock = threading.Lock()
        self._budget_at = time.monotonic()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that go away are part of the game

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address of `/file`."""
        return f"{self.base_url}/file"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def sent_bytes(self) -> int:
        with self._lock:
            return sum(end - start for start, end in self.sent)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            number = len(self.requests)
            self.requests.append((handler.path, dict(handler.headers.items())))
            fault = self.script(number)
            if fault is not None and fault.kind == "change" and self.later is not None:
                self.files["/file"], self.later, fault = self.later, None, None
            served = self.files.get(handler.path.removeprefix("/moved"))
        if served is None:
            self._send_plain(handler, 404, b"no such file")
        elif fault is not None and fault.kind in _WHOLE_FAULTS:
            self._send_faulty_answer(handler, fault)
        else:
            self._send_file(handler, served, fault)

    def _send_plain(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _send_faulty_answer(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.kind == "html":
            self._send_plain(handler, 200, HTML, Content_Type="text/html; charset=utf-8")
        elif fault.kind == "redirect":
            self._send_plain(handler, 302, b"", Location="/moved" + handler.path.removeprefix("/moved"))
        elif fault.kind == "redirect_loop":
            self._send_plain(handler, 302, b"", Location=handler.path)
        elif fault.kind == "garbage":
            handler.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            handler.close_connection = True
        elif fault.kind == "silent":
            time.sleep(self.stall_s)
            handler.close_connection = True
        else:
            extra = {} if fault.retry_after is None else {"Retry_After": fault.retry_after}
            self._send_plain(handler, int(fault.kind), b"busy", **extra)

    def _send_file(self, handler: BaseHTTPRequestHandler, served: ServedFile, fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else ""
        size = len(served.content)
        start, end = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if_range = handler.headers.get("If-Range")
        is_current = if_range is None or if_range in (served.etag, served.last_modified)
        is_part = asked is not None and served.has_ranges and kind != "ignore_range" and is_current
        if asked is not None and is_part:
            start, end = int(asked[1]), min(int(asked[2]) + 1, size)
            if start >= size:
                self._send_plain(handler, 416, b"", Content_Range=f"bytes */{size}")
                return
        body = served.content[start:end]
        handler.send_response(206 if is_part else 200)
        for name, value in (("ETag", served.etag), ("Last-Modified", served.last_modified)):
            if value is not None:
                handler.send_header(name, value)
        if is_part:
            shift = 1 if kind == "wrong_range" else 0
            total = size + 1 if kind == "wrong_total" else size
            if kind != "no_range_header":
                handler.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{total}")
        if kind == "gzip":
            handler.send_header("Content-Encoding", "gzip")
        length = len(body) + {"wrong_length": 7, "short_length": -1}.get(kind, 0)
        if kind != "no_length":
            handler.send_header("Content-Length", str(max(length, 0)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        # A client that will not have it hangs up; what it never reads is not counted as sent.
        if kind == "ignore_range" and select.select([handler.connection], [], [], 0.05)[0]:
            handler.close_connection = True
            return
        if kind == "off_by_one":
            body = served.content[start + 1 : end + 1].ljust(len(body), b"\0")
        elif kind == "corrupt" and body:
            body = bytes([body[0] ^ 0x40]) + body[1:]
        elif kind == "html_body":
            body = HTML.ljust(len(body))[: len(body)]
        cut = min(fault.after, len(body)) if fault is not None and kind in ("drop", "stall") else len(body)
        self._send_body(handler, body[:cut], start)
        if kind == "stall" and cut < len(body):
            time.sleep(self.stall_s)
        if kind in ("drop", "stall", "wrong_length", "short_length", "no_length"):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_WR)
            handler.close_connection = True

    def _send_body(self, handler: BaseHTTPRequestHandler, body: bytes, start: int) -> None:
        step = 8192 if self.bytes_per_s is None else 2048
        for offset in range(0, len(body), step):
            block = body[offset : offset + step]
            if self.bytes_per_s is not None:
                with self._lock:
                    self._budget_at = max(self._budget_at, time.monotonic()) + len(block) / self.bytes_per_s
                    pause_s = self._budget_at - time.monotonic()
                time.sleep(max(pause_s, 0.0))
            handler.wfile.write(block)
            with self._lock:
                self.sent.append((start + offset, start + offset + len(block)))


_WHOLE_FAULTS = {"html", "redirect", "redirect_loop", "garbage", "silent", "500", "503", "429", "403", "404"}
