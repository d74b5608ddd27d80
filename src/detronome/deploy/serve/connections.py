"""Connections that ask for nothing are closed: uvicorn waits for ever for the rest of a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["protocol_class"]


def protocol_class(idle_s: float) -> Any:
    """Return uvicorn's HTTP protocol with a limit on the time that a connection spends between two requests.

    Args:
        idle_s: the longest time from the first connection, or the last answer, to the next whole head. What remains
            of a body after an early answer counts as well.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes the connection when no request has come in time."""

        _closing: asyncio.TimerHandle | None = None
        _seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look_again()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._closing is not None:
                self._closing.cancel()
            super().connection_lost(exc)

        def _look_again(self) -> None:
            self._closing = self.loop.call_later(idle_s, self._close_if_idle)

        def _close_if_idle(self) -> None:
            is_busy = self.cycle is not None and not self.cycle.response_complete
            if is_busy or self.cycle is not self._seen:
                self._seen = self.cycle
                self._look_again()
            else:
                self.transport.abort()

    return Protocol
