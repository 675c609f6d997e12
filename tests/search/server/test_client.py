"""The client, through the app itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from indexing.errors import ServerError
from search import client as client_module
from search.client import Client
from tests.search.server.conftest import TOKEN, Serve, Shop, picture

Answer = Callable[[httpx.Request], httpx.Response]


class Through(httpx.BaseTransport):
    """Hands requests to the app."""

    def __init__(self, app: TestClient) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        found = self._app.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx.Response(found.status_code, headers=dict(found.headers), content=found.content)


@pytest.fixture
def shop_client(client: TestClient) -> Client:
    return Client("http://shop", transport=Through(client))


def test_searching(shop_client: Client, tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(picture("blue"))
    for image in (tmp_path / "query.png", str(tmp_path / "query.png"), picture("blue")):
        answer = shop_client.search("shop", image=image, k=2, facets=["kind"])
        assert answer.hits[0].product_id == "b"
        assert len(answer.hits) == 2
        assert answer.facets["kind"][0].count == 2
    text = shop_client.search(
        "shop", text="red", minus="blue", where="price < 10", attributes={"kind": "mug"}
    )
    assert [hit.product_id for hit in text.hits] == ["r/1 ?&é", "y"]
    left = shop_client.search("shop", like="b", crop=(0, 0, 0.5, 1), offset=1)
    assert [hit.rank for hit in left.hits] == [2, 3]


def test_all_else(serve: Serve, tmp_path: Path) -> None:
    app = serve(token=TOKEN, feedback_file=tmp_path / "f.jsonl")
    with Client("http://shop", token=TOKEN, transport=Through(app)) as shop:
        (index,) = shop.indexes().indexes
        assert (index.name, index.products) == ("shop", 4)
        similar = shop.similar("shop", "r/1 ?&é", k=1)
        assert len(similar.hits) == 1
        product = shop.product("shop", "b")
        assert product.fields["title"] == "Blue mug"
        url = product.images[0].thumbnail
        assert url is not None
        assert shop.thumbnail(url).startswith(b"\xff\xd8")
        assert [found.value for found in shop.facets("shop", ["kind"], "price < 6")["kind"]] == [
            "mug"
        ]
        shop.feedback("shop", similar, "b", 1, "click")
        assert '"like": "r/1 ?&\\u00e9"' in (tmp_path / "f.jsonl").read_text()


def test_errors_are_ours(shop_client: Client, serve: Serve) -> None:
    with pytest.raises(ServerError, match="did you mean price") as caught:
        shop_client.search("shop", text="x", where="prise < 5")
    assert (caught.value.status, caught.value.code) == (400, "bad_where")
    assert len(caught.value.request_id) == 32
    with pytest.raises(ServerError, match="no index of this name"):
        shop_client.similar("other", "x")
    with pytest.raises(ServerError, match="show the server's token"):
        Client("http://shop", transport=Through(serve(token=TOKEN))).indexes()


def overloaded(_: httpx.Request) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": "3"})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda _: httpx.Response(200, text="<html>"), "is it another version"),
        (lambda _: httpx.Response(502, text="<html>"), "answers with status 502"),
        (overloaded, "answers with status 503"),
    ],
)
def test_answers_of_something_else(
    answer: Answer, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module.time, "sleep", lambda _: None)
    with pytest.raises(ServerError, match=says):
        Client("http://shop", transport=httpx.MockTransport(answer)).indexes()


def test_no_answer() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerError, match="is the server running") as caught:
        Client("http://shop", transport=httpx.MockTransport(refuse)).indexes()
    assert caught.value.status is None


def test_an_overloaded_server_is_asked_again_when_it_said(
    client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    real = Through(client)
    answers = iter([overloaded, overloaded, real.handle_request])

    def answer(request: httpx.Request) -> httpx.Response:
        return next(answers)(request)

    found = Client("http://shop", transport=httpx.MockTransport(answer)).search(
        "shop", image=picture("blue")
    )
    assert found.hits[0].product_id == "b"
    assert pauses == [3.0, 3.0]
