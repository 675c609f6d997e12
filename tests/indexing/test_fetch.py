"""Fetching by URL: which addresses are public, and a local server that misbehaves."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexing import fetch
from indexing.errors import FetchError

# Self-signed for the name shop.example, valid from 2020 to 2120; the key guards nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgE4GL6hKTFkxSd1lx
+pLEm6Hpy3OyEM8oPFCjOX4Qzx6hRANCAASDHW8Ym52F6VDr5vl+ZIp9iFz6fV1N
oNQzD/4vNi5UKf1ibztNrcZBfwKelbCZVEpfmsdjbijd6GcDM304PJ6D
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBajCCARCgAwIBAgIBATAKBggqhkjOPQQDAjAXMRUwEwYDVQQDDAxzaG9wLmV4
YW1wbGUwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBcxFTATBgNV
BAMMDHNob3AuZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIMdbxib
nYXpUOvm+X5kin2IXPp9XU2g1DMP/i82LlQp/WJvO02txkF/Ap6VsJlUSl+ax2Nu
KN3oZwMzfTg8noOjSzBJMBcGA1UdEQQQMA6CDHNob3AuZXhhbXBsZTAPBgNVHRMB
Af8EBTADAQH/MB0GA1UdDgQWBBRt/XSJ2fH1DzZpyMY+MzUMppn+zTAKBggqhkjO
PQQDAgNIADBFAiAg9fpplfv9ta+zBm5kUL8Q9o+adw4b6ScjYU8TBg2p7AIhAJkE
/0GNbLDrtqZD0wf/v3ErzQJ6hskWktTqeL26j0VL
-----END CERTIFICATE-----
"""

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1"]
PUBLIC += ["64:ff9b::808:808"]  # what an IPv6-only network gives for 8.8.8.8
NOT_PUBLIC = [
    *("127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "fec0::1"),
    *("ff02::1", "ff0e::1", "2001:db8::1", "2001:0:808:808::1", "::7f00:1", "::808:808"),
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "5f00::1", "not-an-address"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert fetch.is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetch.is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a.jpg", "127.0.0.1, not a public address"),
        ("http://2130706433/a.jpg", "127.0.0.1, not a public address"),
        ("http://0177.0.0.1/a.jpg", "127.0.0.1, not a public address"),
        ("https://[::1]/a.jpg", "::1, not a public address"),
        ("http://[::ffff:10.0.0.1]/a.jpg", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("file:///etc/passwd", "scheme 'file' is refused"),
        ("ftp://example.org/a.jpg", "scheme 'ftp' is refused"),
        ("shirts/1.jpg", "scheme '' is refused"),
        ("http:///a.jpg", "names no host"),
        ("http://user:secret@example.org/a.jpg", "user name in the URL is refused"),
        ("http://example.org:99999/a.jpg", "Port out of range"),
    ],
)
def test_refused_before_anything_is_sent(url: str, reason: str) -> None:
    with pytest.raises(FetchError) as error:
        fetch.fetch_image(url)
    assert str(error.value).startswith(url)
    assert reason in str(error.value)


class Server:
    """Answers each connection on 127.0.0.1 with raw bytes of its script, by path."""

    def __init__(self, script: dict[str, bytes], context: ssl.SSLContext | None) -> None:
        self.context = context
        self.script = script
        self.requests: list[bytes] = []
        self.stop = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.stop.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            request = connection.recv(65536)
            self.requests.append(request)
            path = request.split(b" ")[1].decode(errors="replace")
            if path not in self.script:
                return
            connection.sendall(self.script[path])
            while path.startswith("/drip") and not self.stop.wait(0.02):
                connection.sendall(b"x")
            if path == "/silent":
                self.stop.wait()
        except OSError:  # the client has had enough
            return

    def url(self, path: str, host: str = "shop.example") -> str:
        return f"http://{host}:{self.port}{path}"


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def moved(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, f"Location: {location}")


@contextmanager
def serving(script: dict[str, bytes], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(script, context)
    try:
        yield server
    finally:
        server.stop.set()
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        server.thread.join(5)


def get(url: str, timeout: float = 10.0, max_bytes: int = 1000) -> bytes:
    """Every name resolves to the local server but `inside.example`, which is refused."""

    def resolve(host: str, port: int) -> list[str]:
        return ["10.0.0.1"] if host == "inside.example" else ["127.0.0.1"]

    return fetch._fetch(url, timeout, max_bytes, resolve, lambda address: address == "127.0.0.1")


def test_a_picture_and_the_request_for_it() -> None:
    with serving({"/a%20b/%C3%BC.jpg?w=1&h=2": answer(b"\xff\xd8picture")}) as server:
        assert get(server.url("/a b/ü.jpg?w=1&h=2#part")) == b"\xff\xd8picture"
        request = server.requests[0].decode()
    assert f"\r\nHost: shop.example:{server.port}\r\n" in request
    assert "\r\nAccept-Encoding: identity\r\n" in request


def test_chunked_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving({"/": head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"}) as server:
        assert get(server.url("")) == b"abcde"


def test_three_redirects_are_followed_and_a_fourth_is_not() -> None:
    script = {f"/{n}": moved(f"/{n + 1}") for n in range(4)} | {"/4": answer(b"there")}
    with serving(script) as server:
        assert get(server.url("/1")) == b"there"
        with pytest.raises(FetchError, match="/0: more than 3 redirects"):
            get(server.url("/0"))


@pytest.mark.parametrize("status", ["301 a", "302 a", "303 a", "307 a", "308 a"])
def test_a_redirect_to_a_private_address_is_refused(status: str) -> None:
    script = {"/": moved("http://inside.example/secret", status)}
    with serving(script) as server, pytest.raises(FetchError) as error:
        get(server.url("/"))
    assert str(error.value) == (
        f"{server.url('/')} (redirected to http://inside.example/secret): "
        "inside.example is 10.0.0.1, not a public address: refused"
    )


def test_a_redirect_to_a_file_is_refused() -> None:
    script = {"/": moved("file:///etc/passwd")}
    with serving(script) as server, pytest.raises(FetchError, match="scheme 'file' is refused"):
        get(server.url("/"))


def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    with pytest.raises(FetchError, match=r"shop\.example is 10\.0\.0\.1, not a public address"):
        fetch._fetch(
            "https://shop.example/a.jpg",
            10.0,
            1000,
            lambda host, port: ["93.184.216.34", "10.0.0.1"],
            fetch.is_public,
        )


def test_the_name_is_looked_up_once_and_that_address_is_used() -> None:
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with serving({"/": answer(b"picture")}) as server:
        # `.invalid` has no address: only the one from `resolve` can have been used.
        url = server.url("/", "shop.invalid")
        assert fetch._fetch(url, 10.0, 1000, resolve, lambda address: True) == b"picture"
    assert asked == [("shop.invalid", server.port)]


def test_body_at_the_limit_and_over_it() -> None:
    with serving({"/1": answer(b"x" * 1000), "/2": answer(b"x" * 1001)}) as server:
        assert len(get(server.url("/1"))) == 1000
        with pytest.raises(FetchError, match="more than 1,000 bytes"):
            get(server.url("/2"))


def test_a_body_without_end_is_stopped_by_the_limit() -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000
    with (
        serving({"/drip": endless}) as server,
        pytest.raises(FetchError, match="more than 1,000 bytes"),
    ):
        get(server.url("/drip"))


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("/silent", b""),
        ("/drip-status", b"HTTP/1.1 200 "),
        ("/drip-header", b"HTTP/1.1 200 OK\r\nX-Long: "),
        ("/drip-body", b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
def test_one_deadline_bounds_a_server_that_drips(path: str, start: bytes) -> None:
    with (
        serving({path: start}) as server,
        pytest.raises(FetchError, match=r"no picture within 0\.2 s"),
    ):
        get(server.url(path), timeout=0.2, max_bytes=10**9)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (answer(b"", "404 Not Found"), "the server answered 404 (Not Found)"),
        (answer(b"", "500 \x1b[2Jboo"), "the server answered 500 (Internal Server Error)"),
        (answer(b"", "302 Found"), "the server answered 302 (Found)"),
        (answer(b"12345")[:-2], "the connection ended 2 bytes early"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0-OpenSSH"),
        (b"", "Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "IncompleteRead"),
    ],
)
def test_answers_that_are_no_picture(raw: bytes, reason: str) -> None:
    with serving({"/": raw}) as server, pytest.raises(FetchError) as error:
        get(server.url("/"))
    assert str(error.value).startswith(f"{server.url('/')}: ")
    assert reason in str(error.value)
    assert str(error.value).isprintable()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "expected"),
    [
        ("shop.example", True, None),
        ("other.example", True, "Hostname mismatch"),
        ("shop.example", False, "self.signed certificate"),
    ],
)
def test_tls_is_verified_for_the_name_though_an_address_is_dialled(
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: bool,
    expected: str | None,
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving({"/": answer(b"picture")}, context) as server:
        url = server.url("/", host).replace("http:", "https:")
        if expected is None:
            assert get(url) == b"picture"
        else:
            with pytest.raises(FetchError, match=expected):
                get(url)


def test_a_server_that_speaks_no_tls() -> None:
    with serving({"/": b""}) as server, pytest.raises(FetchError, match=r"^https://shop\.example"):
        get(server.url("/").replace("http:", "https:"))


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchError, match="Connection refused"):
        get(f"http://shop.example:{port}/")


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving({"/": answer(b"picture")}) as server:
        assert get(server.url("/")) == b"picture"
