from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from detronome.deploy.serve.connections import protocol_class
from detronome.deploy.serve.server import _allow_files, _loop_factory, serve
from detronome.deploy.serve.service import Service
from detronome.errors import ConfigError
from detronome.runtime.web import listen

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")
IDLE_S = 0.5
MAX_HEAD_BYTES = 2000
REQUEST = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = bytes(2**25)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Tells what was asked; `/slow` takes its time, `/early` does not wait for the body, `/large` is large."""
    body = b""
    answer = LARGE
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * IDLE_S)
    if scope["path"] != "/large":
        message: dict[str, Any] = {"more_body": scope["path"] != "/early"}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        names = sorted(name.decode() for name, _ in scope["headers"])
        answer = json.dumps([scope["method"], scope["path"], body.decode(), names]).encode()
    status = 503 if scope["state"]["is_surplus"] else 200
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for start in range(0, len(answer), 2**16):
        piece = answer[start : start + 2**16]
        await send({"type": "http.response.body", "body": piece, "more_body": start + 2**16 < len(answer)})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    http = protocol_class(IDLE_S, max_connections=5, max_head_bytes=MAX_HEAD_BYTES)
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None))

    def run(listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))

    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=run, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def received(connection: socket.socket, *, until: bytes | None = None) -> bytes:
    """Return what comes until it ends like this, or until the connection ends."""
    data = b""
    try:
        while until is None or not data.endswith(until):
            piece = connection.recv(2**16)
            if not piece:
                break
            data += piece
    except ConnectionResetError:
        pass
    return data


def exchange(port: int, *pieces: bytes) -> tuple[list[int], list[Any]]:
    """Send pieces on one connection; return the statuses and the JSON of all answers until its end."""
    with connect(port) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(0.02)
        data = received(connection)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", data)]
    return statuses, [json.loads(text) for text in re.findall(rb'\["[A-Z]+", .*?\]\]', data)]


def closed_after_s(connection: socket.socket) -> float:
    started = time.monotonic()
    received(connection)
    return time.monotonic() - started


@pytest.mark.parametrize("start", [b"", b"GET / HT", REQUEST[:-2], CHUNKED.replace(b"echo", b"early") + b"3\r\nab"])
def test_a_connection_without_a_whole_head_is_closed(port: int, start: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(start)
        assert IDLE_S / 2 < closed_after_s(connection) < 10


def test_a_slow_answer_is_waited_for_and_the_connection_serves_on(port: int) -> None:
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            assert received(connection, until=b"]]"), "closed while it was being answered"
        assert closed_after_s(connection) < 10


def test_an_answer_that_is_not_read_ends_with_its_connection(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(4 * IDLE_S)
        assert len(received(connection)) < len(LARGE)


def test_an_answer_that_is_read_slowly_is_sent_whole(port: int) -> None:
    size = 0
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while piece := connection.recv(2**18):
            size += len(piece)
            time.sleep(0.02)  # in all, several times what an answer that is not read is given
    assert size > len(LARGE)


def test_connections_beyond_the_bound_are_known_and_far_beyond_it_closed(port: int) -> None:
    with ExitStack() as stack:
        connections = []
        for number in range(120):
            connections.append(stack.enter_context(connect(port)))
            if number < 10 or number == 119:
                with suppress(ConnectionError):
                    connections[-1].sendall(REQUEST)
        assert received(connections[-1]) == b""
        statuses = [received(connection, until=b"]]")[9:12] for connection in connections[:10]]
    assert statuses[0] == b"200" and statuses[-2:] == [b"503"] * 2


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        POST + b"Content-Length: 3, 4\r\n\r\nabcd",
        POST + b"Content-Length: +3\r\n\r\nabc",
        POST + b"Content-Length: -3\r\n\r\nabc",
        POST + b"Content-Length: 0x3\r\n\r\nabc",
        POST + b"Content-Length: 3 4\r\n\r\nabcd",
        POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nabc",
        POST + b"Content-Length : 3\r\n\r\nabc",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST.replace(b"\r\n", b"\n") + b"Content-Length: 3\n\nabc",
        POST + b"A: b\nContent-Length: 3\r\n\r\nabc",
        POST + b"A: b\rContent-Length: 3\r\n\r\nabc",
        POST + b"A: b\r\n c\r\n\r\n",
        POST + b"A: b\0c\r\n\r\n",
        POST + b"A\0: b\r\n\r\n",
        POST + b"no colon\r\n\r\n",
        POST + b"Host: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        POST + b"A: " + b"b" * MAX_HEAD_BYTES,
        POST + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        POST + b"A: b\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n",
        b"A" * 2 * MAX_HEAD_BYTES,
        CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcX\r\n0\r\n\r\n",
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(port: int, data: bytes) -> None:
    assert exchange(port, data)[0] == [400]
    assert exchange(port, data[: len(data) // 2], data[len(data) // 2 :])[0] == [400]


@pytest.mark.parametrize("start", [CHUNKED + b"3;", CHUNKED + b"3\r\nabc\r\n0\r\nA: "])
def test_what_is_no_body_between_its_pieces_is_bounded(port: int, start: bytes) -> None:
    assert exchange(port, start, b"b" * 2 * MAX_HEAD_BYTES)[0] == [400]


def test_trailers_are_no_headers(port: int) -> None:
    assert exchange(port, CHUNKED, b"3\r\nabc\r\n0\r\nContent-Type: image/png\r\n\r\n") == (
        [200],
        [["POST", "/echo", "abc", ["host", "transfer-encoding"]]],
    )


@pytest.mark.parametrize("is_split", [False, True])
def test_requests_on_one_connection_are_answered_in_turn_each_with_its_own_body(port: int, is_split: bool) -> None:
    requests = [
        REQUEST,
        POST + b"Content-Length: 3\r\n\r\nabc",
        CHUNKED + b"2\r\nde\r\n1\r\nf\r\n0\r\n\r\n",
        b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nGET ",
        b"GET /last?x HTTP/1.0\r\n\r\n",
    ]
    statuses, told = exchange(port, *(requests if is_split else [b"".join(requests)]))
    assert statuses == [200] * 5
    assert [one[:3] for one in told] == [
        ["GET", "/slow", ""],
        ["POST", "/echo", "abc"],
        ["POST", "/echo", "def"],
        ["POST", "/early", ""],
        ["GET", "/last", ""],
    ]


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 34\r\n\r\n%s", b"Transfer-Encoding: chunked\r\n\r\n22\r\n%s\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("is_split", [False, True])
def test_a_body_stays_a_body_where_another_protocol_is_asked_for(port: int, framing: bytes, is_split: bool) -> None:
    body = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n\n"
    assert len(body) == 34
    head, _, rest = (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + framing % body).partition(b"\r\n\r\n")
    last = b"GET /last HTTP/1.0\r\n\r\n"
    pieces = [head + b"\r\n\r\n", rest, last] if is_split else [head + b"\r\n\r\n" + rest + last]
    statuses, told = exchange(port, *pieces)
    assert statuses == [200, 200]
    assert [one[:3] for one in told] == [["POST", "/echo", body.decode()], ["GET", "/last", ""]]


def test_noise_after_a_request_does_not_become_its_answer(port: int) -> None:
    for pieces in ([REQUEST + b"\0\r\n\r\n"], [REQUEST, b"\0\r\n\r\n"], [REQUEST + REQUEST, b"\0", b"\0" * 5000]):
        statuses, told = exchange(port, *pieces)
        assert statuses == [200] * len(told) and told[0][:2] == ["GET", "/slow"]
    answered = CHUNKED.replace(b"echo", b"early")
    assert exchange(port, answered, b"no number\r\n")[0] == [200]


def test_as_many_requests_wait_on_one_connection_as_are_bounded(port: int) -> None:
    statuses, _ = exchange(port, REQUEST + b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    assert statuses == [200] * 33  # 32 wait for the first


def test_connections_do_not_gather_small_packets() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_as_many_files_are_allowed_as_there_may_be_connections() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        _allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, before[1])
        _allow_files(250)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("no-such-host.invalid", 0), ("203.0.113.7", 0)])
def test_an_address_that_cannot_be_listened_at_is_told(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="--port"):
        listen(host, port)


def test_a_connection_is_kept_for_as_long_as_it_may_be_idle(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    class ToldError(Exception):
        pass

    def config(*_: Any, timeout_keep_alive: float, **__: Any) -> None:
        raise ToldError(timeout_keep_alive)

    monkeypatch.setattr(uvicorn, "Config", config)
    with pytest.raises(ToldError, match=r"^60$"):
        serve(make_service(idle_s=60), host="127.0.0.1", port=0)
