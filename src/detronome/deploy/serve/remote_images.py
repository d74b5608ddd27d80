"""Images from addresses, where a server is told to fetch them: from public addresses alone, within bounds.

A name is looked up once, and the connection goes to the very address that was judged, so a name that changes its mind
between the two reaches nothing inside. Redirects are judged like first addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from functools import cache
from urllib.parse import urljoin, urlsplit

import httpx2

from detronome.deploy.serve.limits import RefusedError

__all__ = ["fetch_image", "is_public"]

_MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity"}
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All IPv6 addresses of the open Internet (RFC 4291); Python also calls some others global, such as fec0::1."""
_TRANSLATED = tuple(ipaddress.ip_network(net) for net in ("2001::/32", "2002::/16"))
"""IPv6 addresses among them that stand for IPv4 ones (Teredo, 6to4): they may lead to a private one."""


async def fetch_image(url: str, *, max_bytes: int, deadline: float, take: Callable[[int], None]) -> bytes:
    """Return the file at an address.

    Args:
        url: http or https, of a public host, at the scheme's usual port.
        max_bytes: larger files are refused.
        deadline: on the monotonic clock.
        take: is told of each piece, and may refuse it: a share of an `UploadBudget`.

    Raises:
        RefusedError: 400 for an address that is not allowed or gives no file, 413 for a file that is too large, 503
            when it takes too long.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            async with httpx2.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False) as client:
                for _ in range(_MAX_REDIRECTS + 1):
                    content = await _get(client, url, max_bytes, take)
                    if isinstance(content, bytes):
                        return content
                    url = content
    except TimeoutError as error:
        raise RefusedError(503, "deadline", "the address did not answer in time", retry_after_s=1) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _bad(f"nothing can be fetched from there: {type(error).__name__}") from error
    raise _bad("too many redirects")


@cache
def _tls() -> ssl.SSLContext:
    """Return what all fetches share: to read the certificates again would hold up the event loop each time."""
    return httpx2.create_ssl_context(trust_env=False)


async def _get(client: httpx2.AsyncClient, url: str, max_bytes: int, take: Callable[[int], None]) -> bytes | str:
    """Return the content, or the address of a redirect."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
    except ValueError as error:  # also where the name cannot be encoded
        raise _bad("this is no address") from error
    if parts.scheme not in _PORTS or not host or port not in (None, _PORTS[parts.scheme]):
        raise _bad("only http and https addresses at their usual ports are fetched")
    if parts.username is not None or parts.password is not None:
        raise _bad("an address with a name and password is not fetched")
    address = await _public_address(host, _PORTS[parts.scheme])
    literal = f"[{address}]" if ":" in address else address
    target = httpx2.URL(url.partition("#")[0]).copy_with(host=literal, port=_PORTS[parts.scheme])
    name = f"[{host}]" if ":" in host else host
    request = client.build_request("GET", target, headers=_HEADERS | {"Host": name})
    request.extensions["sni_hostname"] = host
    response = await client.send(request, stream=True)
    try:
        if response.has_redirect_location:
            return urljoin(url, response.headers["location"])
        if response.status_code != 200:
            raise _bad(f"the address answers with status {response.status_code}")
        chunks: list[bytes] = []
        size_bytes = 0
        async for chunk in response.aiter_raw():  # not decompressed, which would make a small chunk a large one
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise RefusedError(413, "too_large", f"the file there has more than {max_bytes:,} bytes")
            take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        await response.aclose()


async def _public_address(host: str, port: int) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _bad("its host is not known") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _bad("its host is not a public one")
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open Internet, whatever way it is written."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # also one with a zone, which is local
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip not in _GLOBAL_UNICAST or any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _bad(why: str) -> RefusedError:
    return RefusedError(400, "bad_url", f"the image cannot be fetched: {why}", fix="send the image itself")
