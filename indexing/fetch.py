"""Pictures by URL, for users who asked for it, and never from inside the network.

Every address that a host name resolves to must be public, and the connection goes to the
very address that was checked, so that a second look-up cannot slip another one in. Redirects
are checked alike. Proxies of the environment are not used: they would look names up anew.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from indexing.errors import FetchError
from indexing.images import MAX_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 65536
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_image(url: str, *, timeout: float = 10.0) -> bytes:
    """The bytes behind an http or https URL, at most `images.MAX_BYTES` of them.

    `timeout` (seconds) bounds the whole fetch, redirects included; only a name look-up
    under way is left to the system's own limit. Raises FetchError naming the URL.
    """
    return _fetch(url, timeout, MAX_BYTES, _resolve, is_public)


def is_public(address: str) -> bool:
    """Whether an IP address means the same host to anybody on the internet.

    Private, shared, loopback, link-local, multicast, reserved and unspecified addresses do
    not, nor do IPv6 addresses that carry such an IPv4 address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    carried = ip.ipv4_mapped or ip.sixtofour
    if ip in _NAT64:
        carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if carried is not None:
        return is_public(str(carried))
    return ip in _GLOBAL_IPV6 and ip.is_global and ip.teredo is None


def _fetch(
    url: str,
    timeout: float,
    max_bytes: int,
    resolve: Callable[[str, int], list[str]],
    allowed: Callable[[str], bool],
) -> bytes:
    deadline = time.monotonic() + timeout
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        try:
            parts = _checked(target)
            with _connect(parts, deadline, resolve, allowed) as connection:
                answer = _get(connection, parts, deadline)
                if answer.status in _REDIRECTS and (location := answer.getheader("Location")):
                    target = urljoin(target, location)
                    continue
                if answer.status != http.client.OK:
                    meaning = http.client.responses.get(answer.status, "unknown status")
                    raise FetchError(f"the server answered {answer.status} ({meaning})")
                return _body(answer, max_bytes)
        except FetchError as error:
            raise FetchError(f"{_shown(url, target)}: {error}") from error
        except TimeoutError as error:
            raise FetchError(f"{_shown(url, target)}: no picture within {timeout:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FetchError(f"{_shown(url, target)}: {reason}") from error
    raise FetchError(f"{_shown(url, url)}: more than {MAX_REDIRECTS} redirects")


def _shown(url: str, target: str) -> str:
    """What the message calls the picture: no control characters reach a terminal."""
    name = url if url == target else f"{url} (redirected to {target})"
    return name if name.isprintable() else repr(name)


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"scheme {parts.scheme!r} is refused, use http or https")
    if not parts.hostname:
        raise FetchError("the URL names no host")
    if parts.username is not None:
        raise FetchError("a user name in the URL is refused")
    return parts


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, without a scope; also of decimal and octal notations."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _connect(
    parts: SplitResult,
    deadline: float,
    resolve: Callable[[str, int], list[str]],
    allowed: Callable[[str], bool],
) -> socket.socket:
    host = (parts.hostname or "").encode("idna").decode("ascii")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = resolve(host, port)
    for address in addresses:
        if not allowed(address):
            raise FetchError(f"{host} is {address}, not a public address: refused")
    failure = OSError(f"{host} has no address")
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), _left(deadline))
            break
        except OSError as error:
            failure = error
    else:
        raise failure
    if parts.scheme == "http":
        return connection
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except OSError:
        connection.close()
        raise


def _get(
    connection: socket.socket, parts: SplitResult, deadline: float
) -> http.client.HTTPResponse:
    host = parts.netloc.encode("idna").decode("ascii")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    connection.settimeout(_left(deadline))
    connection.sendall(
        f"GET {path}{query} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: shoplens\r\n"
        "Accept: image/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    # HTTPResponse needs nothing of a socket but `makefile`.
    answer = http.client.HTTPResponse(cast(socket.socket, _Reader(connection, deadline)))
    answer.begin()
    return answer


def _body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    body = bytearray()
    while chunk := answer.read(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"more than {max_bytes:,} bytes")
    if answer.length:  # what the server announced and did not send
        raise FetchError(f"the connection ended {answer.length:,} bytes early")
    return bytes(body)


class _Reader(io.RawIOBase):
    """Reads from a socket until one deadline, however slowly the bytes drip in."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
