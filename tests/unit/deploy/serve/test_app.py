from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_model import CATEGORIES, FakeProcess, detections_of, encoded
from PIL import Image

from detronome.deploy.serve.app import build_app
from detronome.deploy.serve.limits import RefusedError
from detronome.deploy.serve.service import Service
from detronome.errors import MissingExtraError
from detronome.ops.segment_ids import ids_of_colors
from detronome.types import PanopticPrediction, Segment

pytest.importorskip("starlette")
from starlette.testclient import TestClient

pytestmark = pytest.mark.filterwarnings("ignore:Using .httpx. with .starlette")
MakeService = Callable[..., Service]
JPEG = {"Content-Type": "image/jpeg"}
PREDICT = {
    "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
    "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "root_path": "",
}  # fmt: skip
"""What a server tells the application of a request."""


@contextmanager
def client_of(service: Service, **options: Any) -> Iterator[TestClient]:
    """Serve without sockets."""
    app = build_app(service, **options)

    async def with_start(scope: Any, receive: Any, send: Any) -> None:
        if not service.model._thread.is_alive() and service.model._state == "starting":
            service.start()
        await app(scope, receive, send)

    with TestClient(with_start, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def send_in_threads(client: TestClient, contents: list[bytes], path: str = "/predict") -> list[Any]:
    """Send requests at once; return the answers in order."""
    answers: list[Any] = [None] * len(contents)

    def send(number: int) -> None:
        answers[number] = client.post(path, content=contents[number], headers=JPEG)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_answer_has_boxes_scores_names_and_size(make_service: MakeService) -> None:
    with client_of(make_service()) as client:
        answer = client.post("/predict?score=0.1", content=encoded(40), headers=JPEG)
    assert answer.status_code == 200
    record = answer.json()
    assert record["image"] == {"width": 30, "height": 20}
    assert record["detections"] == [
        {"category_id": 7, "name": "<b>dog</b>", "score": 0.9, "box_xyxy": [40.0, 0.0, 30.0, 20.0]},
        {"category_id": 1, "name": "cat", "score": 0.2, "box_xyxy": [0.0, 0.0, 1.0, 1.0]},
    ]
    assert set(record["timing_ms"]) == {"decode", "wait", "model"}


def test_score_and_max_detections_choose(make_service: MakeService) -> None:
    with client_of(make_service()) as client:
        counts = [
            len(client.post(f"/predict{query}", content=encoded(40)).json()["detections"])
            for query in ("", "?score=0", "?score=1", "?score=0&max_detections=1")
        ]
    assert counts == [1, 2, 0, 1]


def test_forms_and_pictures(make_service: MakeService) -> None:
    with client_of(make_service()) as client:
        in_form = client.post("/predict", files={"image": ("x.png", encoded(40), "image/png")})
        drawn = [
            client.post("/predict?format=png&score=0", content=encoded(40)),
            client.post("/predict", content=encoded(40), headers={"Accept": "image/jpeg"}),
        ]
    assert in_form.json()["image"]["width"] == 30
    assert [one.headers["content-type"] for one in drawn] == ["image/png", "image/jpeg"]
    pictures = [Image.open(io.BytesIO(one.content)) for one in drawn]
    assert [picture.format for picture in pictures] == ["PNG", "JPEG"]
    assert pictures[0].getpixel((0, 0)) == (2, 2, 2)  # what the drawing was given: two detections


def test_each_answer_is_its_own_images(make_service: MakeService, process: FakeProcess) -> None:
    service = make_service(max_batch=4, max_queue=1000, timeout_s=60)
    grays = [n % 250 + 1 for n in range(300)]
    random.Random(0).shuffle(grays)
    with client_of(service) as client:
        answers = send_in_threads(client, [encoded(gray) for gray in grays])
    found = [answer.json()["detections"][0]["box_xyxy"][0] for answer in answers]
    assert found == grays
    assert max(process.batches) == 4 and sum(process.batches) == len(grays)


def test_a_panoptic_map_can_be_read_back(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(600, dtype=np.int32).reshape(20, 30) * 977

    def with_map(self: FakeProcess, images: list[np.ndarray]) -> list[Any]:
        segment = Segment(id=977, category_id=7, is_thing=True, area=5, score=0.75)
        panoptic = PanopticPrediction(segment_ids=ids, segments=(segment,))
        return [replace(detections_of(image), panoptic=panoptic) for image in images]

    monkeypatch.setattr(FakeProcess, "predict", with_map)
    with client_of(make_service()) as client:
        record = client.post("/predict", content=encoded(40)).json()["panoptic"]
    assert record["segments"][0] | {"name": ""} == {
        "id": 977, "category_id": 7, "name": "", "is_thing": True, "area": 5, "score": 0.75,
    }  # fmt: skip
    colors = np.array(Image.open(io.BytesIO(base64.b64decode(record["map_png"]))))
    np.testing.assert_array_equal(ids_of_colors(colors), ids)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    make_service: MakeService, process: FakeProcess
) -> None:
    service = make_service(max_batch=1, max_queue=2, timeout_s=30)
    process.may_go_on.clear()
    with client_of(service) as client:
        accepted = threading.Thread(target=send_in_threads, args=(client, [encoded(1), encoded(2)]))
        accepted.start()
        until(lambda: service._slots.taken == 2)
        started = time.perf_counter()
        refused = client.post("/predict", content=encoded(3))
        took_s = time.perf_counter() - started
        process.may_go_on.set()
        accepted.join(60)
        assert client.post("/predict", content=encoded(3)).status_code == 200
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
    assert "queue" in refused.json()["error"]["what"]
    assert took_s < 0.5  # on a machine that others use as well


def test_a_request_past_its_deadline_is_answered_and_leaves_the_queue(
    make_service: MakeService, process: FakeProcess
) -> None:
    service = make_service(max_batch=2, max_queue=8)
    process.may_go_on.clear()
    with client_of(service) as client:
        holding = threading.Thread(target=send_in_threads, args=(client, [encoded(1)]))
        holding.start()
        until(lambda: process.batches == [1])
        started = time.perf_counter()
        late = client.post("/predict?timeout=0.3", content=encoded(2))
        took_s = time.perf_counter() - started
        process.may_go_on.set()
        holding.join(60)
        assert client.post("/predict", content=encoded(3)).status_code == 200
    assert late.status_code == 503 and "time" in late.json()["error"]["what"]
    assert 0.3 <= took_s < 0.8
    assert len(process.batches) == 2  # the late one never reached the model
    until(lambda: service._slots.taken == 0 and service._slots.held_bytes == 0 and service.uploads.held_bytes == 0)


def test_a_queue_that_is_too_long_for_the_deadline_is_told_before_the_body(
    make_service: MakeService, process: FakeProcess
) -> None:
    service = make_service(max_batch=1, max_queue=50)
    process.may_go_on.clear()
    service.model.seconds_per_image = 2.0
    with client_of(service) as client:
        holding = threading.Thread(target=send_in_threads, args=(client, [encoded(1)] * 3))
        holding.start()
        until(lambda: service._slots.taken == 3)
        refused = client.post("/predict?timeout=5", content=encoded(2))
        process.may_go_on.set()
        holding.join(60)
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "6"


def test_an_image_on_which_the_model_fails_is_alone_with_it(make_service: MakeService) -> None:
    with client_of(make_service(max_batch=8)) as client:
        answers = send_in_threads(client, [encoded(0), encoded(50), encoded(60)])
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert answers[0].json()["error"]["what"]


def test_a_dead_model_is_seen_and_replaced(make_service: MakeService, process: FakeProcess) -> None:
    service = make_service()
    with client_of(service) as client:
        assert client.get("/readyz").status_code == 200
        process.dies = process.fails_to_start = True
        died = client.post("/predict", content=encoded(50))
        assert died.status_code == 503 and died.headers["Retry-After"]
        until(lambda: client.get("/healthz").status_code == 503)
        assert client.get("/readyz").json() == {"status": "not ready"}
        assert client.post("/predict", content=encoded(50)).status_code == 503
        process.fails_to_start = False
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/healthz").status_code == 200
        assert client.post("/predict", content=encoded(50)).status_code == 200
        until(lambda: "detronome_model_restarts_total 1" in client.get("/metrics").text)

        process.is_dead = True  # while idle
        assert client.get("/readyz").status_code == 503
        until(lambda: client.get("/readyz").status_code == 200)


def test_surplus_connections_may_look_but_not_predict(make_service: MakeService) -> None:
    app = build_app(make_service())

    async def surplus(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"is_surplus": True}
        await app(scope, receive, send)

    client = TestClient(surplus, base_url="http://localhost")
    refused = client.post("/predict", content=encoded(50))
    assert refused.status_code == 503 and refused.json()["error"]["what"]
    assert refused.headers["Connection"] == "close" and refused.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200


def test_a_draining_server_refuses(make_service: MakeService) -> None:
    service = make_service()
    with client_of(service) as client:
        assert client.get("/readyz").status_code == 200
        service.is_draining = True
        refused = client.post("/predict", content=encoded(50))
        assert refused.status_code == 503 and refused.headers["Connection"] == "close"
        assert client.get("/readyz").json() == {"status": "stopping"}
        assert client.get("/healthz").status_code == 200


def test_a_body_that_is_on_its_way_when_the_server_is_stopped_is_answered(make_service: MakeService) -> None:
    service = make_service()

    def content() -> Iterator[bytes]:
        whole = encoded(50)
        yield whole[:10]
        service.is_draining = True
        yield whole[10:]

    async def scenario() -> list[Any]:
        service.start()
        pieces = content()
        sent: list[Any] = []

        async def receive() -> Any:
            piece = next(pieces, None)
            return await asyncio.Event().wait() if piece is None else request_of(piece)

        def request_of(piece: bytes) -> Any:
            return {"type": "http.request", "body": piece, "more_body": not service.is_draining}

        async def send(message: Any) -> None:
            sent.append(message)

        await build_app(service)(dict(PREDICT), receive, send)
        return sent

    assert asyncio.run(scenario())[0]["status"] == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/predict", b"", JPEG, 400),
        ("POST", "/predict", b"hello", JPEG, 415),
        ("POST", "/predict", b"hello", {"Content-Type": "text/plain"}, 415),
        ("POST", "/predict", b'{"url": "http://x/"}', {"Content-Type": "application/json"}, 415),
        ("POST", "/predict", b"x" * 3000, JPEG, 413),
        ("POST", "/predict?score=2", b"", JPEG, 400),
        ("GET", "/predict", b"", {}, 405),
        ("GET", "/../../etc/passwd", b"", {}, 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", b"", {}, 404),
        ("GET", "/healthz", b"", {"Host": "evil.example"}, 400),
    ],
)
def test_mistakes_are_answered_with_4xx(
    make_service: MakeService, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    with client_of(make_service(max_body_bytes=2000)) as client:
        answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    if "Host" not in headers:
        assert answer.json()["error"]["what"]


def test_malformed_bodies_give_4xx_only(make_service: MakeService) -> None:
    rng = random.Random(0)
    sound = encoded(100, size_hw=(60, 60), form="JPEG")
    with client_of(make_service(max_body_bytes=2000)) as client:
        for number in range(300):
            content = sound[: rng.randrange(len(sound) - 20)] if number % 2 else rng.randbytes(rng.randrange(2500))
            content_type = rng.choice(["image/jpeg", "", "multipart/form-data; boundary=x", "a/b", "application/json"])
            answer = client.post("/predict", content=content, headers={"Content-Type": content_type})
            assert 400 <= answer.status_code < 500
        assert client.post("/predict", content=encoded(3)).status_code == 200


def test_addresses_are_fetched_only_where_that_is_allowed(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    held: list[int] = []
    service = make_service()

    async def fetch(url: str, *, max_bytes: int, deadline: float, take: Callable[[int], None]) -> bytes:
        asked.append(url)
        if url.endswith("none"):
            raise RefusedError(400, "bad_url", "nothing there")
        take(100)
        held.append(service.uploads.held_bytes)
        return encoded(77)

    monkeypatch.setattr("detronome.deploy.serve.app.fetch_image", fetch)
    with client_of(service, allows_urls=True) as client:
        answer = client.post("/predict", json={"url": "https://example.org/a.png"})
        assert answer.json()["detections"][0]["box_xyxy"][0] == 77
        assert client.post("/predict", json={"url": "https://example.org/none"}).status_code == 400
        for wrong in ([], {"url": 3}, {"url": "https://a/", "more": 1}, {}, {"url": "https://a/" + "b" * 9000}):
            assert client.post("/predict", json=wrong).status_code == 400
    assert len(asked) == 2
    assert held[0] > 100 and service.uploads.held_bytes == 0


def test_metrics_count_what_happened(make_service: MakeService) -> None:
    with client_of(make_service()) as client:
        for content in (encoded(1), encoded(2), b"noise"):
            client.post("/predict", content=content)
        client.get("/secret-" + "x" * 50)
        client.post("/predict", content=encoded(0))  # on which the model fails
        text = client.get("/metrics").text
    for line in (
        'detronome_requests_total{path="/predict",status="200"} 2',
        'detronome_requests_total{path="/predict",status="415"} 1',
        'detronome_requests_total{path="/predict",status="500"} 1',
        'detronome_requests_total{path="other",status="404"} 1',
        'detronome_refused_total{reason="bad_image"} 1',
        "detronome_request_seconds_count 2",
        "detronome_batch_images_count 3",
        "detronome_queue_length 0",
        "detronome_in_flight 0",
        "detronome_ready 1",
    ):
        assert line in text.splitlines()


def test_the_description_is_what_the_server_does(make_service: MakeService) -> None:
    service = make_service(timeout_s=7)
    with client_of(service) as client:
        document = client.get("/openapi.json").json()
        record = client.post("/predict?score=0", content=encoded(3)).json()
        paths = {path: client.get(path).status_code for path, item in document["paths"].items() if "get" in item}
    assert document["openapi"].startswith("3.1") and set(paths.values()) == {200}
    schemas = document["components"]["schemas"]
    references = [text.split('"')[0] for text in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert references and set(references) <= set(schemas)
    assert set(schemas["Prediction"]["required"]) <= set(record) <= set(schemas["Prediction"]["properties"])
    assert set(record["detections"][0]) == set(schemas["Detection"]["required"])
    (timeout,) = (p for p in document["paths"]["/predict"]["post"]["parameters"] if p["name"] == "timeout")
    assert timeout["schema"]["maximum"] == 7
    bodies = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "application/json" not in bodies and len(CATEGORIES) == 2


def test_the_page_needs_nothing_from_elsewhere(make_service: MakeService) -> None:
    with client_of(make_service()) as client:
        answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "'sha256-" in policy
    for word in ("http://", "https://", "//cdn", "innerHTML", "eval("):
        assert word not in answer.text


def test_a_client_that_leaves_leaves_the_queue(make_service: MakeService, process: FakeProcess) -> None:
    async def scenario() -> None:
        service = make_service(max_batch=2)
        service.start()
        app = build_app(service)
        process.may_go_on.clear()
        sent: list[Any] = []
        left = asyncio.Event()

        def request(content: bytes, leaves: asyncio.Event | None) -> Any:
            messages = [{"type": "http.request", "body": content, "more_body": False}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await (leaves or asyncio.Event()).wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            return asyncio.create_task(app(dict(PREDICT), receive, send))

        first = request(encoded(1), None)
        while process.batches != [1]:
            await asyncio.sleep(0.005)
        second = request(encoded(2), left)
        while service._slots.taken != 2 or not len(service._queue):
            await asyncio.sleep(0.005)
        left.set()
        await second
        process.may_go_on.set()
        await first
        await asyncio.sleep(0.05)
        assert process.batches == [1]
        assert [message["status"] for message in sent if "status" in message] == [499, 200]
        service.stop()

    asyncio.run(scenario())


def test_a_large_answer_is_counted_until_it_is_read(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detronome.deploy.serve.app._PIECE_BYTES", 64)
    content = encoded(1)

    async def scenario() -> None:
        service = make_service(max_upload_bytes=2 * len(content) + 300)
        service.start()
        app = build_app(service)
        is_read = asyncio.Event()

        async def ask(reads: asyncio.Event) -> list[Any]:
            messages = [{"type": "http.request", "body": content, "more_body": False}]
            sent: list[Any] = []

            async def receive() -> Any:
                return messages.pop() if messages else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                if sent:
                    await reads.wait()
                sent.append(message)

            await app(dict(PREDICT), receive, send)
            return sent

        first = asyncio.create_task(ask(is_read))
        while service.uploads.held_bytes <= len(content):
            await asyncio.sleep(0.005)
        assert service.in_flight == 1 and service._slots.taken == 0
        at_once = asyncio.Event()
        at_once.set()
        refused = await ask(at_once)
        assert refused[0]["status"] == 503 and b"large bodies" in b"".join(one["body"] for one in refused[1:])
        is_read.set()
        head, *pieces = await first
        body = b"".join(one["body"] for one in pieces)
        assert head["status"] == 200 and json.loads(body)["detections"] and len(pieces) == -(-len(body) // 64)
        assert [one["more_body"] for one in pieces] == [True] * (len(pieces) - 1) + [False]
        assert service.uploads.held_bytes == service.in_flight == 0
        assert (await ask(at_once))[0]["status"] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("module", ["python_multipart", "httptools", "uvloop"])
def test_without_the_extra_the_error_says_how_to_get_it(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"(?s){module.replace('_', '-')}.*detronome\[serve\]"):
        build_app(make_service())
