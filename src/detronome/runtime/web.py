"""What the live page and the model server share: the address to listen at, and what a browser may do with a page."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket

from detronome.errors import ConfigError

__all__ = ["HEADERS", "LOOPBACK", "LOOPBACK_NAMES", "content_policy", "listen", "url_of"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""What this machine alone can reach."""

LOOPBACK_NAMES = [*LOOPBACK, "[::1]"]
"""The names that a request to this machine may give: no page from elsewhere can read along by giving its own name this
machine's address."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def listen(host: str, port: int, *, backlog: int | None = None) -> socket.socket:
    """Return a socket that listens; port 0 picks a free one.

    Raises:
        ConfigError: nothing can listen at this address.
    """
    try:
        if not 0 <= port <= 65535:
            raise OverflowError("a port is a number from 0 to 65535")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=backlog)
        # Connections inherit it. asyncio sets it for sockets of a named protocol alone, which these are not; without
        # it the second half of each answer waits 40 ms for the client's acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: an empty part of a name, or a long one
        number = error.errno if isinstance(error, OSError) else None
        # The error's own text says the address again; for a name that is not known the number is negative.
        told = os.strerror(number) if number is not None and number > 0 else str(error)
        raise ConfigError(
            f"nothing can be served there: {told}",
            where=f"{host}, port {port}",
            fix="choose another port with --port (0 picks a free one), or another address with --host",
        ) from error


def url_of(listener: socket.socket, host: str) -> str:
    """Return the address that a browser takes."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def content_policy(page: str) -> str:
    """Return a Content-Security-Policy under which this page's own script runs and asks this server, and nothing else.

    The page may show pictures that it made itself.
    """
    script = re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
