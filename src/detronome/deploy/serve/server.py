"""The process that listens: it opens the model, serves, and ends in order when it is told to.

After SIGTERM or Ctrl-C it is not ready any more, refuses new predictions, and ends when the last one is answered, or
when the time for that is over. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from detronome.deploy.serve.app import build_app
from detronome.deploy.serve.model_process import ModelProcessError
from detronome.deploy.serve.service import Service
from detronome.errors import CheckpointError
from detronome.runtime.signals import ended_in_order
from detronome.runtime.web import LOOPBACK, listen, url_of

__all__ = ["serve"]

_BACKLOG = 2048
_MAX_HEAD_BYTES = 32 * 1024
_OTHER_FILES = 256
"""Files that are no connection: pipes to the model's process, images that are fetched, libraries."""


def serve(
    service: Service,
    *,
    host: str,
    port: int,
    allows_urls: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until the process is told to stop; then no process of it is left.

    Args:
        service: answers; is opened here, and stopped.
        host: the address to listen at.
        port: 0 picks a free one.
        allows_urls: fetch images from public addresses that clients name.
        on_ready: told the server's address once it answers.

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
        ConfigError: nothing can listen at this address.
        DetronomeError: the model cannot be opened.
    """
    app = build_app(service, is_local=host in LOOPBACK, allows_urls=allows_urls)
    listener = listen(host, port, backlog=_BACKLOG)
    try:
        with listener, ended_in_order():  # so that the model's process ends too
            try:
                service.open()
            except ModelProcessError as error:
                raise CheckpointError(str(error), where="serve", fix="its last words are above") from error
            # What is loaded stays: to look through it for garbage would hold up all requests for 30 ms now and then.
            gc.collect()
            gc.freeze()
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_serve(app, service, listener, lambda: on_ready(url_of(listener, host))))
    finally:
        gc.unfreeze()
        service.stop()


async def _serve(app: Any, service: Service, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    import uvicorn

    from detronome.deploy.serve.connections import protocol_class

    config = uvicorn.Config(
        app,
        http=protocol_class(
            service.limits.idle_s,
            max_connections=service.limits.max_connections,
            max_head_bytes=_MAX_HEAD_BYTES,
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(service.limits.idle_s),
        timeout_graceful_shutdown=1,
    )

    class Server(uvicorn.Server):
        """Goes on listening after a signal, until what has begun is answered."""

        drained_by: float | None = None

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if service.is_draining:
                self.should_exit = self.force_exit = True
                return
            service.is_draining = True
            self.drained_by = time.monotonic() + service.limits.grace_s

        async def on_tick(self, counter: int) -> bool:
            is_over = self.drained_by is not None and (service.in_flight == 0 or time.monotonic() >= self.drained_by)
            return await super().on_tick(counter) or is_over

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            on_ready()

    _allow_files(service.limits.max_connections + _BACKLOG + _OTHER_FILES)
    service.start()
    await Server(config).serve(sockets=[listener])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop's, which takes a third less time for a refusal; Windows has it not."""
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def _allow_files(count: int) -> None:
    """Let the process open so many files, where the system lets it: many begin with 1,024, some with 256."""
    if sys.platform != "win32":  # where sockets do not count
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
