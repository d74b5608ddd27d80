from __future__ import annotations

import asyncio
import gzip
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from detronome.deploy.serve import remote_images
from detronome.deploy.serve.limits import RefusedError
from detronome.deploy.serve.remote_images import fetch_image, is_public

CONTENT = b"x" * 5000
taken: list[int] = []
"""What the latest fetch has counted."""


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fec0::1",
    "fd00::1",
    "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "64:ff9b::a00:1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "name",
    "1",
    "0x7f000001",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(1)
        self.send_response(404 if self.path == "/none" else 200)
        if self.path == "/bomb":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(gzip.compress(bytes(10**6)) if self.path == "/bomb" else CONTENT)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """A server on this machine that stands for a public one at example.org; returns what it was asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setitem(remote_images._PORTS, "http", server.server_port)
    look_up = socket.getaddrinfo

    def known(host: str, *arguments: Any, **options: Any) -> Any:
        return look_up(
            "127.0.0.1" if host in ("example.org", "private.example", "xn--bcher-kva.example") else host,
            *arguments,
            **options,
        )

    monkeypatch.setattr(socket, "getaddrinfo", known)
    judged: list[str] = []

    def judge(address: str) -> bool:
        judged.append(address)
        return len(judged) == 1  # the first address only

    monkeypatch.setattr(remote_images, "is_public", judge)
    yield server.asked  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, *, max_bytes: int = 10_000, seconds: float = 10) -> bytes:
    taken.clear()
    return asyncio.run(fetch_image(url, max_bytes=max_bytes, deadline=time.monotonic() + seconds, take=taken.append))


def test_a_file_is_fetched_from_the_address_that_was_judged(inside: list[tuple[str, str]]) -> None:
    assert fetch("http://example.org/a.jpg?b=1#c") == CONTENT
    assert inside == [("/a.jpg?b=1", "example.org")]
    assert sum(taken) == len(CONTENT)


def test_a_name_in_other_letters_is_asked_for_in_ascii(inside: list[tuple[str, str]]) -> None:
    assert fetch("http://bücher.example/é") == CONTENT
    assert inside == [("/%C3%A9", "xn--bcher-kva.example")]


def test_what_is_compressed_stays_small(inside: list[tuple[str, str]]) -> None:
    content = fetch("http://example.org/bomb")
    assert len(content) < 2000 and gzip.decompress(content) == bytes(10**6)


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [("/big", {"max_bytes": 4999}, 413), ("/slow", {"seconds": 0.2}, 503), ("/none", {}, 400)],
)
def test_files_that_cannot_be_had(
    inside: list[tuple[str, str]], path: str, options: dict[str, Any], status: int
) -> None:
    with pytest.raises(RefusedError) as caught:
        fetch(f"http://example.org{path}", **options)
    assert caught.value.status == status


def test_certificates_are_read_once_for_all_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, contexts = remote_images.httpx2.AsyncClient, list[Any]()

    def client(*, verify: Any = None, **options: Any) -> Any:
        contexts.append(verify)
        return plain(verify=verify, **options)

    monkeypatch.setattr(remote_images.httpx2, "AsyncClient", client)
    for _ in range(2):
        with pytest.raises(RefusedError):
            fetch("https://127.0.0.1/")
    assert contexts[0] is contexts[1] and contexts[0].verify_mode == ssl.CERT_REQUIRED


def test_a_redirect_is_judged_again(inside: list[tuple[str, str]]) -> None:
    with pytest.raises(RefusedError, match="not a public one"):
        fetch("http://example.org/to/http://private.example/secret")
    assert [path for path, _ in inside] == ["/to/http://private.example/secret"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "photo.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "http://",
        "http://[::1]/",
        "http://[x/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://169.254.169.254/latest",
        "http://example.org:22/",
        "http://example.org:99999/",
        "http://user:secret@example.org/",
        "http://a\0b/",
        "http://é.invalid/",
        "http://a..b/",
        "http://" + "a" * 70 + ".org/",
        "https://10.0.0.1/",
        "http://nobody.invalid/",
    ],
)
def test_other_addresses_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", never)
    with pytest.raises(RefusedError) as caught:
        fetch(url)
    assert caught.value.status == 400
