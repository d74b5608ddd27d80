"""The ASGI application: routes, answers and errors; what becomes of an image is the service's."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from detronome.deploy.serve.answers import (
    MEDIA_TYPES,
    best_of,
    encode_picture,
    error_record,
    json_bytes,
    prediction_record,
    retry_after,
)
from detronome.deploy.serve.body import image_in_body, read_body
from detronome.deploy.serve.limits import RefusedError
from detronome.deploy.serve.metrics import CONTENT_TYPE
from detronome.deploy.serve.openapi import openapi
from detronome.deploy.serve.remote_images import fetch_image
from detronome.deploy.serve.request import Asked, parse_request
from detronome.deploy.serve.service import Found, Service, Slot
from detronome.errors import MissingExtraError
from detronome.runtime.web import HEADERS, LOOPBACK_NAMES, content_policy
from detronome.version import __version__

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["build_app"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PIECE_BYTES = 2**16
"""Of an answer; the next one is sent when the client has read most of what was sent before."""


class _UrlBody(msgspec.Struct, forbid_unknown_fields=True):
    # A name of a megabyte would hold up the event loop for seconds.
    url: Annotated[str, msgspec.Meta(max_length=8192)]


def build_app(service: Service, *, is_local: bool = True, allows_urls: bool = False) -> Starlette:
    """Return the application.

    Args:
        service: answers; it is started by whoever runs the application.
        is_local: answer only requests that name this machine, so that no page from elsewhere can read along by giving
            its own name this machine's address.
        allows_urls: fetch images from public addresses that clients name.

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
    """
    try:
        import httptools  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, Response
        from starlette.routing import Route

        if sys.platform != "win32":
            import uvloop  # noqa: F401
    except ImportError as error:
        package = (error.name or "starlette").partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, extra="serve", needed_for="the server") from error

    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page_headers = {**HEADERS, "Content-Security-Policy": content_policy(page)}

    def answer(record: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return Response(json_bytes(record), status, {**HEADERS, **(headers or {})}, media_type="application/json")

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=page_headers)

    async def predict(scope: _Scope, receive: _Receive, send: _Send) -> None:
        started = time.monotonic()
        service.in_flight += 1
        try:
            with service.uploads.share() as take:
                try:
                    body, media_type = await _predict(service, Request(scope, receive), started, allows_urls, take)
                    response = Response(body, 200, HEADERS, media_type=media_type)
                except RefusedError as error:
                    service.metrics.refused.add(reason=error.reason)
                    closes = service.is_draining or error.reason == "connections"
                    headers = retry_after(error) | ({"Connection": "close"} if closes else {})
                    response = answer(error_record(error.what, error.fix), error.status, headers)
                await _send_in_pieces(response, send)
        finally:
            service.in_flight -= 1
        if response.status_code == 200:
            service.metrics.request_s.observe(time.monotonic() - started)

    async def show_health(request: Request) -> Response:
        is_healthy = service.model.is_healthy
        return answer({"status": "ok" if is_healthy else "the model cannot be started"}, 200 if is_healthy else 503)

    async def show_readiness(request: Request) -> Response:
        status = "ready" if service.is_ready else "stopping" if service.is_draining else "not ready"
        return answer({"status": status}, 200 if service.is_ready else 503)

    async def show_metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def show_openapi(request: Request) -> Response:
        return answer(
            openapi(
                version=__version__,
                categories=service.categories,
                limits=service.limits,
                allows_urls=allows_urls,
            )
        )

    async def tell_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        fix = "see /openapi.json"
        return answer(error_record(error.detail, fix), error.status_code, dict(error.headers or {}))

    async def tell_bug(request: Request, error: Exception) -> Response:
        return answer(error_record("the server failed on this request", "its log says why"), 500)

    routes = {
        "/predict": Route("/predict", _Application(predict), methods=["POST"]),
        "/": Route("/", show_page),
        "/healthz": Route("/healthz", show_health),
        "/readyz": Route("/readyz", show_readiness),
        "/metrics": Route("/metrics", show_metrics),
        "/openapi.json": Route("/openapi.json", show_openapi),
    }
    hosts = LOOPBACK_NAMES if is_local else ["*"]
    return Starlette(
        routes=list(routes.values()),
        middleware=[
            Middleware(_Counting, service=service, paths=frozenset(routes)),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        ],
        exception_handlers={HTTPException: tell_http_error, Exception: tell_bug},
    )


class _Application:
    """An ASGI application as starlette knows one: plain functions are handlers, which return what they answer."""

    def __init__(self, function: Callable[[_Scope, _Receive, _Send], Awaitable[None]]) -> None:
        self._function = function

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        await self._function(scope, receive, send)


class _Counting:
    """Counts requests by path and status; unknown paths together, or anybody could make the metrics grow."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service, paths: frozenset[str]) -> None:
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        has_started = False

        def add(status: int) -> None:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.requests.add(path=path, status=str(status))

        async def count(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                add(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, count)
        except Exception:
            if scope["type"] == "http" and not has_started:
                add(500)  # which is answered further out
            raise


async def _send_in_pieces(response: Response, send: _Send) -> None:
    """Send an answer no faster than it is read, so that what it holds is counted until the client has it."""
    body = bytes(response.body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    for start in range(0, max(1, len(body)), _PIECE_BYTES):
        end = start + _PIECE_BYTES
        await send({"type": "http.response.body", "body": body[start:end], "more_body": end < len(body)})


async def _predict(
    service: Service, request: Request, started: float, allows_urls: bool, take: Callable[[int], None]
) -> tuple[bytes, str]:
    """Return the answer's body and media type."""
    asked = parse_request(request.query_params.multi_items(), request.headers.get("accept", ""), service.limits)
    deadline = started + asked.timeout_s
    if request.scope.get("state", {}).get("is_surplus"):
        raise RefusedError(503, "connections", "there are too many connections", fix="try again", retry_after_s=1)
    service.refuse_if_busy(deadline)
    limits = service.limits
    body = await read_body(
        request.receive, request.headers, max_bytes=limits.max_body_bytes, deadline=deadline, take=take
    )
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() == "application/json":
            url = _url_in_body(body, allows_urls)
            content = await fetch_image(url, max_bytes=limits.max_body_bytes, deadline=deadline, take=take)
        else:
            content = image_in_body(body, content_type)
        with service.slot(deadline) as slot:
            found = await service.detect(content, slot, deadline=deadline, gone=gone)
            answer, media_type = await _encoded(service, found, asked, slot, deadline=deadline, gone=gone)
    finally:
        gone.cancel()
    if len(answer) > _PIECE_BYTES:
        take(len(answer))
    return answer, media_type


async def _encoded(
    service: Service, found: Found, asked: Asked, slot: Slot, *, deadline: float, gone: asyncio.Future[None]
) -> tuple[bytes, str]:
    detections = best_of(found.detections, score=asked.score, max_detections=asked.max_detections)
    found = replace(found, detections=detections)

    def encode() -> bytes:
        if asked.form == "json":
            size_hw = (found.image.shape[0], found.image.shape[1])
            return json_bytes(
                prediction_record(detections, service.categories, size_hw=size_hw, timing_ms=found.timing_ms)
            )
        return encode_picture(service.picture(found), asked.form)

    is_quick = asked.form == "json" and detections.panoptic is None
    body = encode() if is_quick else await service.in_thread(encode, slot, deadline=deadline, gone=gone)
    return body, MEDIA_TYPES[asked.form]


async def _until_gone(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _url_in_body(body: bytes, allows_urls: bool) -> str:
    if not allows_urls:
        raise RefusedError(
            415, "content_type", "JSON is no image, and this server fetches none", fix="send the image itself"
        )
    try:
        return msgspec.json.decode(body, type=_UrlBody).url
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise RefusedError(400, "bad_url", 'the body is not {"url": ...}', fix='send {"url": "https://..."}') from error
