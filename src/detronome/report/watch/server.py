"""The live page of a run: a small server, the page itself, and the state that the page asks for again and again.

The page builds everything it shows from text nodes, so no name in a run can become markup, and it may talk to this
server alone.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detronome.errors import DetronomeError, MissingExtraError
from detronome.report.html import write_report
from detronome.report.watch.state import Watcher
from detronome.runtime.web import HEADERS, LOOPBACK, LOOPBACK_NAMES, content_policy, listen, url_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["build_app", "serve"]

_LEAST_BETWEEN_LOOKS_S = 0.5
_GRACE_S = 2


def serve(watcher: Watcher, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the page until the process is told to stop.

    Raises:
        MissingExtraError: starlette or uvicorn is not installed.
        ConfigError: nothing can listen at this address.
    """
    app = build_app(watcher, is_local=host in LOOPBACK)
    import uvicorn

    listener = listen(host, port)
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=_GRACE_S)
    with listener:
        on_ready(url_of(listener, host))
        uvicorn.Server(config).run(sockets=[listener])


def build_app(watcher: Watcher, *, is_local: bool = True) -> Starlette:
    """Return the ASGI application: `/` the page, `/state.json`, `/report` the whole report, made when asked for.

    Args:
        watcher: looks at the run.
        is_local: answer only requests that name this machine, so that no page from elsewhere can read along by giving
            its own name this machine's address.

    Raises:
        MissingExtraError: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn  # noqa: F401
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        package = (error.name or "starlette").partition(".")[0]
        raise MissingExtraError(package, extra="serve", needed_for="the live page") from error

    source = _Source(watcher)
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page_headers = {**HEADERS, "Content-Security-Policy": content_policy(page)}

    # Plain functions: starlette runs them in threads, and a slow disk holds up nobody else.
    def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=page_headers)

    def show_state(request: Request) -> Response:
        return JSONResponse(source.state(), headers=HEADERS)

    def show_report(request: Request) -> Response:
        try:
            return HTMLResponse(source.report(), headers=HEADERS)
        except DetronomeError as error:
            return HTMLResponse(f"<!doctype html><pre>{escape(str(error))}</pre>", status_code=404, headers=HEADERS)

    hosts = LOOPBACK_NAMES if is_local else ["*"]
    return Starlette(
        routes=[Route("/", show_page), Route("/state.json", show_state), Route("/report", show_report)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )


class _Source:
    """What the pages show, for requests that come from several threads and many viewers."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._looking = threading.Lock()
        self._reporting = threading.Lock()
        self._state: dict[str, Any] = {}
        self._looked_at = -math.inf
        self._report: tuple[object, str] = (None, "")

    def state(self) -> dict[str, Any]:
        with self._looking:
            if time.monotonic() - self._looked_at >= _LEAST_BETWEEN_LOOKS_S:
                self._state = _json_ready(self._watcher.look().to_record())
                self._looked_at = time.monotonic()
            return self._state

    def report(self) -> str:
        """Return the report's page, made anew when a file of the run has changed."""
        with self._reporting:
            self.state()  # knows which run is the newest
            run_dir = self._watcher.run_dir
            version = (run_dir, _last_change_ns(run_dir))
            if self._report[0] != version:
                with tempfile.TemporaryDirectory() as folder:
                    page = write_report([run_dir], Path(folder) / "report.html")
                    self._report = (version, page.read_text(encoding="utf-8"))
            return self._report[1]


def _json_ready(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_json_ready(str(key)): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value


def _last_change_ns(folder: Path) -> int:
    """Return when a file of a run has changed last: details and pictures are written after the log's end."""
    changes = [0]
    for path in [*folder.glob("*"), *folder.glob("pictures/*")]:
        with suppress(OSError):
            changes.append(path.stat().st_mtime_ns)
    return max(changes)
