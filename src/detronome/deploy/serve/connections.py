"""Connections that ask for nothing are closed: uvicorn waits for ever for the rest of a request's head.

On connections beyond the bound predictions are refused; uvicorn's own bound would refuse the probes as well, and an
orchestrator would end a server that is only busy.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["protocol_class"]


def protocol_class(idle_s: float, *, max_connections: int) -> Any:
    """Return uvicorn's HTTP protocol with a limit on the time that a connection spends between two requests.

    Args:
        idle_s: how long to wait from the first connection, or the last answer, for the next whole head; after an answer
            up to twice as long. What remains of a body after an early answer counts as well.
        max_connections: requests on others have `is_surplus` in their state.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes the connection when no request has come in time."""

        _closing: asyncio.TimerHandle | None = None
        _seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app_state = {"is_surplus": len(self.connections) > max_connections}
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
                # A request that is being answered is looked at once more when it has ended, or its connection would be
                # closed right after the answer.
                self._seen = None if is_busy else self.cycle
                self._look_again()
            else:
                self.transport.abort()

    return Protocol
