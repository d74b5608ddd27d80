"""HTTP on one connection: uvicorn's protocol with a bound on all that a client can make it wait for, or hold.

The parser is llhttp, which is strict about where a request ends; the few heads that it lets through, and that a proxy
could read otherwise, are refused here. On connections beyond the bound predictions are refused, probes are not, or an
orchestrator would end a server that is only busy; far beyond it connections are closed.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["protocol_class"]

_MAX_PIPELINED = 32
"""Requests that wait for the answer to an earlier one of their connection; the parser cannot stop between two."""
_SPARE_CONNECTIONS = 100
"""Beyond the bound, for probes."""


def protocol_class(idle_s: float, *, max_connections: int, max_head_bytes: int) -> Any:
    """Return uvicorn's HTTP protocol with limits on the time and the memory of a connection.

    Args:
        idle_s: how long to wait from the first connection, or the last answer, for the next whole head; after an answer
            up to twice as long. What remains of a body after an early answer counts as well, and an answer that is not
            read.
        max_connections: requests on others have `is_surplus` in their state; 100 more, and they are closed at once.
        max_head_bytes: of a request's head, and of what is no body between the pieces of a body.
    """
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """Closes the connection when no request has come in time, and refuses heads that are not sound."""

        _closing: asyncio.TimerHandle | None = None
        _seen: object = None
        _pending_bytes = 0  # since the last whole head, piece of a body or end of a request
        _is_in_body = False
        _num_resumed = 0  # how often the client had read most of what was sent

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections + _SPARE_CONNECTIONS:
                transport.abort()
                return
            self.app_state = {"is_surplus": len(self.connections) > max_connections}
            self._look_again()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._closing is not None:
                self._closing.cancel()
            super().connection_lost(exc)

        def _look_again(self) -> None:
            self._closing = self.loop.call_later(idle_s, self._close_if_idle)

        def _close_if_idle(self) -> None:
            is_unread = self.flow.write_paused or self.transport.is_closing()  # there is an answer to be read
            is_busy = not is_unread and self.cycle is not None and not self.cycle.response_complete
            state = (is_unread, self.cycle, self._num_resumed)
            if is_busy or state != self._seen:
                # A request that is being answered is looked at once more when it has ended, or its connection would be
                # closed right after the answer.
                self._seen = None if is_busy else state
                self._look_again()
            else:
                self.transport.abort()

        def resume_writing(self) -> None:
            self._num_resumed += 1
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            self._pending_bytes += len(data)
            try:
                while data:
                    data = self._parse(data)
                if self._pending_bytes > max_head_bytes:
                    raise httptools.HttpParserError("the head is too long")
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")

        def _parse(self, data: bytes) -> bytes:
            """Feed the parser; return what it must be fed again."""
            try:
                self.parser.feed_data(data)
                return b""
            except httptools.HttpParserUpgrade as upgrade:
                # Clients may ask for HTTP/2, and be answered in HTTP/1.1. The parser would take the body for one of the
                # other protocol, and what comes then for another request.
                version = self.parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
                lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
                return b"\r\n".join([*lines, b"", data[upgrade.args[0] :]])

        def on_message_begin(self) -> None:
            self._is_in_body = False
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._is_in_body:  # no trailers: the head has been judged
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._pending_bytes = 0
            self._judge_head()
            if not self.parser.should_upgrade():
                self._is_in_body = True
                super().on_headers_complete()

        def _judge_head(self) -> None:
            hosts = [value for name, value in self.headers if name == b"host"]
            codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
            head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            version = self.parser.get_http_version()
            if (
                version not in ("1.0", "1.1")
                or (len(hosts) != 1 and (hosts or version == "1.1"))
                or codings not in ([], [b"chunked"] if version == "1.1" else [])
                or self.parser.get_method() == b"CONNECT"
                or head_bytes > max_head_bytes
                or len(self.pipeline) >= _MAX_PIPELINED
            ):
                raise httptools.HttpParserError("the head is not sound")

        def on_body(self, body: bytes) -> None:
            self._pending_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._pending_bytes = 0
            if self._is_in_body:
                self._is_in_body = False
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            """Answer what cannot be parsed; where an answer to something earlier is on its way, the connection ends."""
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                if not self._is_in_body or self.pipeline or cycle.response_started:
                    cycle.keep_alive = False
                    return
            elif self._is_in_body:
                self.transport.close()
                return
            super().send_400_response(msg)

    return Protocol
