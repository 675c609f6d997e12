from __future__ import annotations

import base64
import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from search.explain import MatchExplanation, MatchWord
from search.server.logs import JsonFormatter
from tests.search.server.conftest import Serve, Shop, code, picture

SEARCH = "/v1/indexes/shop/search"
LARGE = "x" * 2_001


@pytest.mark.parametrize(
    ("form", "expected", "says"),
    [
        ({}, "bad_request", "the query is empty"),
        ({"minus": "red"}, "bad_request", "minus alone is no query"),
        ({"text": "  "}, "bad_request", "text is blank"),
        ({"text": LARGE}, "bad_request", "text: "),
        ({"text": "red", "minus": ["x"] * 21}, "bad_request", "minus: "),
        ({"text": "red", "k": "0"}, "bad_request", "k: "),
        ({"text": "red", "k": "201"}, "bad_request", "k: "),
        ({"text": "red", "k": "x"}, "bad_request", "k: "),
        ({"text": "red", "k": "200", "offset": "801"}, "bad_request", "k + offset is 1001"),
        ({"text": "red", "offset": "-1"}, "bad_request", "offset: "),
        ({"text": "red", "diversity": "1.5"}, "bad_request", "diversity: "),
        ({"text": "red", "diversity": "nan"}, "bad_request", "diversity"),
        ({"text": "red", "fuse": "sum"}, "bad_request", "fuse: "),
        ({"text": "red", "crop": "0,0,1,1"}, "bad_request", "crop without a photo"),
        ({"like": "b", "crop": "0,0,1"}, "bad_request", "crop: give four fractions"),
        ({"like": "b", "crop": "0,0,2,1"}, "bad_request", "crop 0,0,2,1 is not inside"),
        ({"like": "nothing"}, "not_found", "no product of this id"),
        ({"text": "red", "where": "prise < 5"}, "bad_where", "did you mean price"),
        ({"text": "red", "where": "price <"}, "bad_where", "where: "),
        ({"text": "red", "attribute": "color"}, "bad_request", "attribute: 'color': give a name"),
        ({"text": "red", "attribute": "color=Puce"}, "bad_request", "'Puce' is no value of color"),
        ({"text": "red", "facets": "size"}, "bad_request", "'size' is no attribute"),
        ({"text": "red", "image": "red.png"}, "bad_request", "image: "),
        ({"text": "red", "url": "http://169.254.169.254/"}, "bad_request", "url: "),
        ({"text": "red", "model": "other"}, "bad_request", "model: "),
    ],
)
def test_bad_queries(client: TestClient, form: Any, expected: str, says: str) -> None:
    answer = client.post(SEARCH, data=form)
    assert code(answer) == (404 if expected == "not_found" else 400, expected)
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello", "it looks like text"),
        (b"%PDF-1.4 ...", "PDF"),
        (picture()[:60], "cut short"),
        (b"", "empty file"),
    ],
)
def test_bad_pictures(client: TestClient, data: bytes, says: str) -> None:
    answer = client.post(SEARCH, files={"image": ("photo.jpg", data, "image/jpeg")})
    assert code(answer) == (400, "bad_image")
    assert says in answer.json()["error"]["message"]


def test_a_picture_of_too_many_pixels(client: TestClient) -> None:
    header = bytearray(picture())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    answer = client.post(SEARCH, files={"image": bytes(header)})
    assert code(answer) == (400, "bad_image")


def test_a_picture_and_a_product_to_start_from(client: TestClient) -> None:
    answer = client.post(SEARCH, files={"image": picture()}, data={"like": "b"})
    assert code(answer) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/nothing", 404, "not_found"),
        ("/v1/indexes/other/similar?id=b", 404, "not_found"),
        ("/v1/indexes/shop/similar?id=zzz", 404, "not_found"),
        ("/v1/indexes/shop/similar", 400, "bad_request"),
        ("/v1/indexes/shop/similar?id=b&k=201", 400, "bad_request"),
        ("/v1/indexes/shop/similar?id=b&k=200&offset=900", 400, "bad_request"),
        ("/v1/indexes/shop/product?id=zzz", 404, "not_found"),
        ("/v1/indexes/shop/product?id=" + "x" * 513, 400, "bad_request"),
        ("/v1/indexes/shop/facets", 400, "bad_request"),
        ("/v1/indexes/shop/facets?names=nope", 400, "bad_request"),
        ("/v1/indexes/shop/facets?names=color&where=x", 400, "bad_where"),
        ("/v1/indexes/shop/image?id=zzz", 404, "not_found"),
        ("/v1/indexes/shop/image?id=b&n=2", 404, "not_found"),
        ("/v1/indexes/shop/image?id=b&n=-1", 400, "bad_request"),
        ("/v1/indexes/shop/image?id=b&size=321", 400, "bad_request"),
        ("/v1/indexes/shop/image?id=b&size=x", 400, "bad_request"),
        ("/v1/indexes/shop/search", 405, "bad_request"),
        ("/web/", 404, "not_found"),
        ("/web/nothing.js", 404, "not_found"),
        ("/web/%2e%2e/app.py", 404, "not_found"),
    ],
)
def test_bad_addresses(client: TestClient, path: str, status: int, expected: str) -> None:
    assert code(client.get(path)) == (status, expected)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"token": 1}', b'{"token": "x", "more": 1}'])
def test_bad_json(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert code(client.post("/v1/login", content=body, headers=headers)) == (400, "bad_request")


def test_a_broken_multipart_body(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post(SEARCH, content=b"--x\r\nnonsense", headers=headers)
    assert code(answer) == (400, "bad_request")


def test_more_than_one_file(client: TestClient) -> None:
    files = [("image", picture()), ("image", picture())]
    assert code(client.post(SEARCH, files=files)) == (400, "bad_request")


def test_an_unforeseen_error_shows_nothing_of_the_inside(
    client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(shop.engine, "search", fail)
    with caplog.at_level(logging.ERROR):
        answer = client.post(SEARCH, data={"text": "red"})
    assert code(answer) == (500, "internal")
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    (record,) = [one for one in caplog.records if one.exc_info]
    line = json.loads(JsonFormatter().format(record))
    assert answer.json()["error"]["request_id"] in line["message"]
    assert "/secret/path" in line["traceback"]


def test_our_own_errors_of_the_inside_stay_inside(
    client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexing.errors import IndexCorruptError

    def fail(**_: Any) -> None:
        raise IndexCorruptError("/secret/index is damaged")

    monkeypatch.setattr(shop.engine, "search", fail)
    answer = client.post(SEARCH, data={"text": "red"})
    assert code(answer) == (500, "internal")
    assert "secret" not in answer.text


EXPLAIN = {"text": "red mug", "product_id": "b"}


def test_an_encoder_that_cannot_be_explained_says_so(client: TestClient) -> None:
    answer = client.post("/v1/indexes/shop/explain", data=EXPLAIN)
    assert code(answer) == (501, "not_available")
    assert "tiny" not in answer.text


def test_an_explanation_is_an_overlay_and_words(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[:4] = 1
    asked: list[Any] = []

    def explain(_encoder: Any, picture: Any, text: Any, shown: Any, minus: Any) -> MatchExplanation:
        asked.append((picture, text, list(minus), shown.size))
        return MatchExplanation(0.5, heat, [MatchWord("red", True, 0.25)])

    monkeypatch.setattr("search.server.explaining.explain_match", explain)
    found = client.post("/v1/indexes/shop/explain", data={**EXPLAIN, "minus": "blue"}).json()
    assert found["words"] == [{"text": "red", "kept": True, "weight": 0.25}]
    [(picture, text, minus, size)] = asked
    assert (picture, text, minus) == (None, "red mug", ["blue"])
    kind, _, data = found["heatmap"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(data))) as drawn:
        assert (drawn.mode, drawn.size) == ("RGBA", size)
        levels = np.asarray(drawn)[..., 3]
    assert levels[0].min() > 100  # what speaks for it is on top
    assert levels[-1].max() == 0


def test_every_answer_is_logged_without_what_was_asked(serve: Serve, caplog: Any) -> None:
    client = serve()
    with caplog.at_level(logging.INFO, logger="search.server.access"):
        answer = client.post(SEARCH, data={"text": "very private", "where": "price < 5"})
    (record,) = [one for one in caplog.records if one.name == "search.server.access"]
    line = json.loads(JsonFormatter().format(record))
    assert "private" not in json.dumps(line)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert {name: line[name] for name in ("method", "path", "status", "index", "text_length")} == {
        "method": "POST", "path": SEARCH, "status": 200, "index": "shop", "text_length": 12,
    }  # fmt: skip


def test_the_root_without_a_page_leads_to_the_api(serve: Serve, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert serve(web=empty).get("/", follow_redirects=False).headers["location"] == "/docs"
    (empty / "index.html").write_text("<!doctype html>hello")
    answer = serve(web=empty).get("/")
    assert answer.text == "<!doctype html>hello"
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
