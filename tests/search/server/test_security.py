"""Who may ask, how much, and how long it may take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from indexing.errors import ServerError
from search.server import body as body_module
from search.server.body import BodyLimit
from search.server.security import Token, read_token
from tests.search.server.conftest import TOKEN, Serve, Shop, code, ids, picture

SEARCH = "/v1/indexes/shop/search"
OPEN = {"/", "/healthz", "/v1/login"}


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    schema = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    for path, operations in schema["paths"].items():
        for method in operations:
            yield method.upper(), path.replace("{name}", "shop")
    yield from (("GET", path) for path in ("/docs", "/openapi.json", "/", "/nothing", "/v1"))


def test_every_route_asks_for_the_token(serve: Serve) -> None:
    client = serve(token=TOKEN)
    found = list(routes(client))
    assert len(found) > 12
    for method, path in found:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Cookie": "shoplens_token=wrong"},
            {"Cookie": "shoplens_token"},
        ):
            answer = client.request(method, path, headers=headers, follow_redirects=False)
            if path in OPEN:
                assert answer.status_code != 401, path
            else:
                assert code(answer) == (401, "unauthorized"), path
                assert answer.headers["www-authenticate"] == "Bearer"


def test_the_schema_names_every_route(shop: Shop) -> None:
    app = shop.app()
    hidden = {"/", "/docs", "/openapi.json"}
    found = {route.path for route in app.routes if isinstance(route, APIRoute)}
    assert found - hidden <= set(app.openapi()["paths"])


def test_with_the_token_as_bearer_or_cookie(serve: Serve) -> None:
    client = serve(token=TOKEN)
    for headers in (
        {"Authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"Cookie": f"other=1; shoplens_token={TOKEN}"},
    ):
        assert ids(client.post(SEARCH, data={"text": "red"}, headers=headers))[0] == "r/1 ?&é"


def test_login_gives_a_cookie_that_scripts_cannot_read(serve: Serve) -> None:
    client = serve(token=TOKEN)
    assert code(client.post("/v1/login", json={"token": "wrong"})) == (401, "unauthorized")
    assert client.get("/v1/indexes").status_code == 401
    answer = client.post("/v1/login", json={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/v1/indexes").status_code == 200  # by the cookie


def test_without_a_token_everybody_may_ask(client: TestClient) -> None:
    assert client.post("/v1/login", json={"token": "any"}).status_code == 204
    assert client.get("/v1/indexes").status_code == 200


def test_tokens_are_compared_whole() -> None:
    token = Token(TOKEN)
    assert token.fits(TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + " ", TOKEN.upper(), "é\udc80"):
        assert not token.fits(wrong)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 15, b"0123456789 abcdef", b"\xff" * 20])
def test_bad_token_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ServerError, match="openssl rand"):
        read_token(tmp_path / "token")
    with pytest.raises(ServerError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize("chunked", [True, False])
def test_a_large_body_is_refused(serve: Serve, chunked: bool) -> None:
    client = serve(max_body=3_000)
    data = picture(size=(20, 20)) + b"\0" * 4_000

    def body() -> Iterator[bytes]:
        yield START
        yield data

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    content: Any = body() if chunked else b"".join(body())
    answer = client.post(SEARCH, content=content, headers=headers)
    assert code(answer) == (413, "too_large")
    assert answer.headers["connection"] == "close"
    small = client.post(SEARCH, files={"image": data[:-4_000]})
    assert ids(small)[0] == "r/1 ?&é"


START = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


class Endless:
    """An ASGI client that sends for ever; counts how much was taken of it."""

    def __init__(self, chunk: int) -> None:
        self.chunks = chain([START], repeat(b"x" * chunk))
        self.taken = 0

    async def receive(self) -> dict[str, Any]:
        chunk = next(self.chunks)
        self.taken += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}


def ask(app: Any, receive: Any, headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": SEARCH, "raw_path": SEARCH.encode(),
        "query_string": b"", "headers": headers, "client": None, "http_version": "1.1",
        "scheme": "http", "server": ("x", 80), "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


MULTIPART = (b"content-type", b"multipart/form-data; boundary=x")


def test_of_an_endless_body_no_more_is_read_than_may_be(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "_LINGER_BYTES", 1)
    client = Endless(1 << 16)
    headers = [MULTIPART, (b"transfer-encoding", b"chunked")]
    sent = ask(shop.app(max_body=1_000_000), client.receive, headers)
    assert sent[0]["status"] == 413
    assert client.taken <= 1_000_000 + 2 * (1 << 16)
    # The answer was there before the rest was thrown away.
    assert [message.get("more_body") for message in sent] == [None, True, False]


@pytest.mark.parametrize("length", [b"1000001", b"9" * 400, b"-1", b"x"])
def test_of_a_body_that_says_it_is_large_nothing_is_read_before_the_answer(
    shop: Shop, length: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "_LINGER_BYTES", 0)
    client = Endless(1)
    headers = [MULTIPART, (b"content-length", length)]
    sent = ask(shop.app(max_body=1_000_000), client.receive, headers)
    assert sent[0]["status"] == 413
    assert client.taken == 0


def test_a_body_that_does_not_come_is_given_up(shop: Shop) -> None:
    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent = ask(shop.app(body_seconds=0.01), silent, [MULTIPART])
    assert sent[0]["status"] == 408
    assert b'"timeout"' in sent[1]["body"]


def test_after_the_body_a_client_may_wait_as_long_as_it_likes() -> None:
    messages = iter(
        [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        await asyncio.sleep(0.02)
        assert (await receive())["type"] == "http.disconnect"

    ask(BodyLimit(app, 10, 0.01), receive, [])


def test_a_full_server_says_so_at_once_and_is_well_again(
    serve: Serve, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    embed = shop.encoder.embed_texts

    def slow(texts: Any) -> Any:
        entered.set()
        go_on.wait()
        return embed(texts)

    monkeypatch.setattr(shop.encoder, "embed_texts", slow)
    client = serve(threads=1, max_queue=0)
    answers: list[Any] = []
    first = threading.Thread(
        target=lambda: answers.append(client.post(SEARCH, data={"text": "red"}))
    )
    first.start()
    entered.wait()
    refused = client.post(SEARCH, data={"text": "red"})
    assert code(refused) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"indexes": {"shop": 1}}
    thumbnail = client.get("/v1/indexes/shop/image?id=b")  # has threads of its own
    assert thumbnail.status_code == 200
    assert 'shoplens_in_work{pool="search"} 1.0' in client.get("/metrics").text
    go_on.set()
    first.join()
    assert ids(answers[0])[0] == "r/1 ?&é"
    assert ids(client.post(SEARCH, data={"text": "red"}))[0] == "r/1 ?&é"


def test_a_client_that_went_away_keeps_its_place_until_its_work_is_done() -> None:
    from indexing.errors import OverloadedError
    from search.server.pool import BoundedPool

    async def run() -> None:
        pool = BoundedPool("test", 1, 0)
        started, go_on, done = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            go_on.wait()
            done.set()

        task = asyncio.create_task(pool.run(work))
        await asyncio.to_thread(started.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(OverloadedError):
            await pool.run(work)
        go_on.set()
        await asyncio.to_thread(done.wait)
        await asyncio.to_thread(pool.close)
        assert pool.inside == 0
        with pytest.raises(OverloadedError, match="stopping"):
            await pool.run(work)
        assert pool.inside == 0

    asyncio.run(run())


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    for _ in range(2):
        client.post(SEARCH, data={"text": "red"})
    client.post(SEARCH, data={})
    client.get("/v1/indexes/shop/image?id=b")
    client.get("/v1/indexes/shop/image?id=b")
    client.get("/some/thing/else")
    text = client.get("/metrics").text
    route = 'route="/v1/indexes/{name}/search"'
    for line in (
        f'shoplens_requests_total{{method="POST",{route},status="200"}} 2.0',
        f'shoplens_requests_total{{method="POST",{route},status="400"}} 1.0',
        'shoplens_requests_total{method="GET",route="none",status="404"} 1.0',
        'shoplens_thumbnails_total{source="made"} 1.0',
        'shoplens_thumbnails_total{source="kept"} 1.0',
        'shoplens_index_version{index="shop"} 1.0',
        'shoplens_index_products{index="shop"} 4.0',
    ):
        assert line in text.splitlines()


def test_an_early_answer_lets_the_rest_of_the_body_come(shop: Shop) -> None:
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return {"type": "http.request", "body": b"x", "more_body": len(taken) < 5}

    sent = ask(shop.app(token=TOKEN), receive, [MULTIPART, (b"content-length", b"5")])
    assert sent[0]["status"] == 401
    assert len(taken) == 5
    taken.clear()
    expecting = [MULTIPART, (b"content-length", b"5"), (b"expect", b"100-continue")]
    assert ask(shop.app(token=TOKEN), receive, expecting)[0]["status"] == 401
    assert taken == []
