"""`detronome serve` as a process: it answers, refuses, survives its model, and ends in order."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

import detronome as dt

pytestmark = pytest.mark.alone

pytest.importorskip("uvicorn")


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    @property
    def model(self) -> psutil.Process:
        """The process with the model; the other child is the standard library's resource tracker."""
        children = psutil.Process(self.process.pid).children()
        (model,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return model


@contextmanager
def serving(run: Path, folder: Path, *options: str) -> Iterator[Server]:
    told, result = folder / "stderr.txt", folder / "stdout.txt"
    fixed = ["--port", "0", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "detronome", "serve", str(run), *fixed, *options]
    with told.open("w") as file, result.open("w") as document:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=document, stderr=file, text=True)
    try:
        deadline = time.monotonic() + 200
        while not (found := re.search(r"http://127.0.0.1:(\d+)", told.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, told.read_text()
            time.sleep(0.1)
        assert json.loads(result.read_text()) == {"url": found[0], "checkpoint": str(run)}
        yield Server(process, int(found[1]))
    finally:
        process.kill()
        process.wait()


def ask(
    port: int, method: str, path: str, body: bytes = b"", content_type: str = "image/png"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": content_type} if body else {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 200
    while ask(port, "GET", "/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_from_its_start_to_its_end(blocks: Path, tiny_run: Path, tmp_path: Path) -> None:
    images = sorted((blocks / "images").glob("*.png"))
    model = dt.load(tiny_run, device="cpu")
    alone = [model.predict(image, score=0) for image in images]
    with serving(
        tiny_run, tmp_path, "--device", "cpu", "--max-batch", "4", "--max-queue", "100", "--timeout", "60"
    ) as server:
        port = server.port
        # Answers are those of the model, each of its own image, however they were batched.
        answers: dict[int, dict[str, object]] = {}

        def send(number: int) -> None:
            status, _, body = ask(port, "POST", "/predict?score=0", images[number].read_bytes())
            assert status == 200
            answers[number] = json.loads(body)

        threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert len(answers) == len(images)
        for number, expected in enumerate(alone):
            found = answers[number]["detections"]
            assert isinstance(found, list)
            scores = [one["score"] for one in found]
            np.testing.assert_allclose(scores, expected.scores, atol=1e-3)

        # The process that answers needs no torch: it holds less memory, and ends at once.
        assert not any("libtorch" in part.path for part in psutil.Process(server.process.pid).memory_maps())

        # Sockets: a chunked body, a body that never ends, half a head, noise.
        assert_bodies_are_bounded(port, images[0].read_bytes())

        status, headers, picture = ask(port, "POST", "/predict?format=jpeg&score=0", images[0].read_bytes())
        assert (status, headers["content-type"]) == (200, "image/jpeg") and picture.startswith(b"\xff\xd8")
        assert ask(port, "GET", "/")[0] == 200

        # The model's process dies: seen at once, replaced, and the server lives on.
        first = server.model
        first.kill()
        started = time.monotonic()
        while ask(port, "GET", "/readyz")[0] == 200:
            assert time.monotonic() < started + 1
        wait_until_ready(port)
        assert server.model.pid != first.pid
        assert ask(port, "POST", "/predict", images[0].read_bytes())[0] == 200
        assert b"detronome_model_restarts_total 1" in ask(port, "GET", "/metrics")[2]

        # SIGTERM under load: what was sent is answered, and nothing remains.
        model_process = server.model
        statuses: list[int] = []
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                try:
                    statuses.append(ask(port, "POST", "/predict", images[0].read_bytes())[0])
                except ConnectionError:
                    assert stop.is_set()
                    return

        threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        stop.set()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(30) == 0
        assert set(statuses) <= {200, 503} and 200 in statuses
        assert not model_process.is_running() or model_process.status() == psutil.STATUS_ZOMBIE


def assert_bodies_are_bounded(port: int, image: bytes) -> None:
    def raw(data: bytes, *more: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(data)
            for piece in more:
                connection.sendall(piece)
            return connection.recv(100)

    chunk = b"%x\r\n%s\r\n" % (len(image), image)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(head, chunk, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
    megabyte = b"100000\r\n" + bytes(2**20) + b"\r\n"
    assert raw(head, *[megabyte] * 21).startswith(b"HTTP/1.1 413")
    assert raw(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n").startswith(
        b"HTTP/1.1 413"
    )
    assert raw(b"POST /predict?timeout=0.2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nslow").startswith(
        b"HTTP/1.1 408"
    )
    assert raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_the_model_ends_with_a_server_that_was_killed(tiny_run: Path, tmp_path: Path) -> None:
    with serving(tiny_run, tmp_path, "--device", "cpu") as server:
        model = server.model
        server.process.kill()
        server.process.wait()
        model.wait(30)


def test_a_mistake_ends_the_command_with_a_reason(tmp_path: Path) -> None:
    def run(*arguments: str, ends_with: int) -> str:
        command = [sys.executable, "-m", "detronome", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == ends_with and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "no-such-run" in run(str(tmp_path / "no-such-run"), "--port", "0", ends_with=1)
    told = run("x", "--max-batch", "0", ends_with=2)
    assert "--max-batch" in told and "--max-queue" not in told
    wrong = {"--max-megapixels": "nan", "--max-body-mb": "inf", "--grace": "-1", "--timeout": "inf"}
    told = run("x", *(part for option in wrong.items() for part in option), ends_with=2)
    for option, number in wrong.items():
        assert f"{number} is out of range\n  where: {option}\n" in told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in run("x", "--port", str(taken.getsockname()[1]), ends_with=2)
