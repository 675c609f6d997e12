"""What the server answers to queries, beside what the engine does."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.store import open_index
from search.engine import SearchEngine
from search.server.query_pictures import query_picture
from tests.conftest import tiny_shelves
from tests.search.server.conftest import Shop, ids, picture

SEARCH = "/v1/indexes/shop/search"


def test_a_text(client: TestClient, shop: Shop) -> None:
    answer = client.post(SEARCH, data={"text": "red", "k": "2"}).json()
    hits = answer.pop("hits")
    took = answer.pop("took_ms")
    assert 0 < took["model"] <= took["total"]
    assert len(answer.pop("request_id")) == 32
    assert answer == {
        "index": "shop", "version": 1, "match_probability": None, "good_match": None,
        "facets": {}, "price": {"min": 5.5, "max": 50.0}, "proposals": [], "words": None,
    }  # fmt: skip
    sha = shop.engine.current().index.images.sha256[0][:16]
    assert hits[0] == {
        "rank": 1,
        "product_id": "r/1 ?&é",
        "score": pytest.approx(1, abs=1e-6),
        "title": "Red mug",
        "price": 5.5,
        "currency": "EUR",
        "thumbnail": f"/v1/indexes/shop/image?id=r%2F1%20%3F%26%C3%A9&n=0&size=320&v={sha}",
        "fields": {"title": "Red mug", "price": 5.5, "currency": "EUR", "color": "Red"},
        "filled": {"kind": {"value": "mug", "confidence": pytest.approx(0.8, abs=1e-3)}},
        "duplicates": [],
    }
    # Red and magenta, red and yellow: 16 of 48 cells differ, each by 2.
    assert [hit["score"] for hit in hits[1:]] == [pytest.approx(16.25 / 48.25, abs=1e-6)]


def test_forms_of_both_kinds_are_one(client: TestClient) -> None:
    form = {"text": "red", "minus": ["blue", "lime"], "k": "3"}
    plain = client.post(SEARCH, data=form).json()["hits"]
    parts = [("text", "red"), ("minus", "blue"), ("minus", "lime"), ("k", "3")]
    multipart = client.post(SEARCH, files=[(name, (None, value)) for name, value in parts])
    assert multipart.json()["hits"] == plain


def test_a_picture_and_its_crop(client: TestClient) -> None:
    both = Image.new("RGB", (40, 20), "lime")
    both.paste("blue", (20, 0, 40, 20))
    out = io.BytesIO()
    both.save(out, "PNG")
    files = {"image": ("anything.txt", out.getvalue(), "text/plain")}  # its content decides
    left = client.post(SEARCH, files=files, data={"crop": "0,0,0.5,1"}).json()["hits"]
    right = client.post(SEARCH, files=files, data={"crop": "0.5,0,0.5,1"}).json()["hits"]
    assert left[0]["product_id"] == "g"
    assert right[0]["product_id"] == "b"
    assert left[0]["score"] == pytest.approx(right[0]["score"]) == pytest.approx(1)


def test_what_browsers_send_where_no_file_was_chosen(client: TestClient) -> None:
    body = (
        '--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n'
        "Content-Type: application/octet-stream\r\n\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nblue\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ids(client.post(SEARCH, content=body.encode(), headers=headers))[0] == "b"


def test_pages_follow_each_other(client: TestClient) -> None:
    whole = client.post(SEARCH, data={"text": "red"}).json()["hits"]
    pages = [
        client.post(SEARCH, data={"text": "red", "k": "2", "offset": offset}).json()["hits"]
        for offset in (0, 2, 4)
    ]
    assert [*pages[0], *pages[1]] == whole
    assert [hit["rank"] for hit in whole] == [1, 2, 3, 4]
    assert pages[2] == []
    similar = "/v1/indexes/shop/similar"
    assert (
        ids(client.get(similar, params={"id": "b", "k": 2, "offset": 1}))
        == ids(client.get(similar, params={"id": "b"}))[1:3]
    )


def test_like_is_the_products_picture_without_the_product(client: TestClient) -> None:
    alone = client.post(SEARCH, data={"like": "r/1 ?&é", "k": "3"}).json()["hits"]
    similar = client.get("/v1/indexes/shop/similar", params={"id": "r/1 ?&é"}).json()["hits"]
    assert [(hit["rank"], hit["product_id"]) for hit in alone] == [
        (hit["rank"], hit["product_id"]) for hit in similar
    ]
    assert len(alone) == 3
    but = ids(client.post(SEARCH, data={"like": "r/1 ?&é", "text": "lime"}))
    assert set(but) == {"b", "g", "y"}
    assert but[2] == "b"  # red and lime together are as near to lime as to yellow


def test_likely_categories_are_proposed(client: TestClient, shop: Shop) -> None:
    (shop.place / "more.csv").write_text("id,title,image\nt,Toys for all,red.png\n")
    catalog = read_catalog(shop.place / "more.csv")
    build_index(catalog, shop.encoder, shop.index, classifiers=[tiny_shelves()])
    answer = client.post(SEARCH, data={"text": "red toy"}).json()
    assert answer["proposals"] == [{"attribute": "shelf", "value": "Toys", "confidence": 1}]
    chosen = client.post(SEARCH, data={"text": "red toy", "attribute": "shelf=toys"}).json()
    assert chosen["proposals"] == []
    assert client.post(SEARCH, data={"text": "red clothes"}).json()["proposals"] == []


def test_where_and_price(client: TestClient) -> None:
    answer = client.post(SEARCH, data={"text": "red", "where": "price < 10"})
    assert ids(answer) == ["r/1 ?&é", "y"]
    assert answer.json()["price"] == {"min": 5.5, "max": 7.0}
    nothing = client.post(SEARCH, data={"text": "red", "where": "price > 1000"})
    assert ids(nothing) == []
    assert nothing.json()["price"] is None


def test_attributes_demote_and_facets_count(client: TestClient) -> None:
    form = {"text": "red", "attribute": "kind=sock", "facets": ["kind", "color"]}
    answer = client.post(SEARCH, data=form)
    assert ids(answer) == ["y", "g", "r/1 ?&é", "b"]
    assert answer.json()["facets"] == {
        "kind": [
            {"value": "mug", "count": 2, "filled": 2},
            {"value": "sock", "count": 2, "filled": 2},
        ],
        "color": [
            {"value": "Red", "count": 1, "filled": 0},
            {"value": "Blue", "count": 1, "filled": 1},
            {"value": "Green", "count": 1, "filled": 1},
        ],
    }
    found = client.get("/v1/indexes/shop/facets", params={"names": "kind", "where": "price < 6"})
    assert found.json() == {"facets": {"kind": [{"value": "mug", "count": 1, "filled": 1}]}}


def test_indexes_and_products(client: TestClient) -> None:
    assert client.get("/v1/indexes").json() == {
        "indexes": [
            {
                "name": "shop", "version": 1, "products": 4, "images": 5, "encoder": "tiny",
                "attributes": ["color", "kind"],
                "fields": ["id", "title", "description", "brand", "category", "price", "currency",
                           "availability", "color", "kind"],
                "price": {"min": 5.5, "max": 50.0},
            }
        ],
        "feedback": False,
    }  # fmt: skip
    product = client.get("/v1/indexes/shop/product", params={"id": "b"}).json()
    assert [one["role"] for one in product.pop("images")] == ["main", "additional"]
    assert product == {
        "product_id": "b",
        "fields": {"title": "Blue mug", "price": 50.0, "currency": "EUR"},
        "filled": {
            "color": {"value": "Blue", "confidence": pytest.approx(0.8, abs=1e-3)},
            "kind": {"value": "mug", "confidence": pytest.approx(0.8, abs=1e-3)},
        },
    }


def test_options_reach_the_engine(
    client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    search = shop.engine.search
    monkeypatch.setattr(
        shop.engine, "search", lambda **given: asked.update(given) or search(**given)
    )
    form = {"text": "red", "diversity": "0.5", "fuse": "top2", "collapse": "true", "rerank": "0"}
    assert client.post(SEARCH, data=form).status_code == 200
    assert {name: asked[name] for name in ("diversity", "fuse", "collapse", "rerank")} == {
        "diversity": 0.5, "fuse": "top2", "collapse": True, "rerank": False,
    }  # fmt: skip


@pytest.mark.parametrize("size", [(3000, 2000), (100_000, 50), (1, 5_000_000)])
def test_large_pictures_are_kept_small(size: tuple[int, int]) -> None:
    data = picture("red", size)
    kept = query_picture(data, (0, 0, 1, 1), at_least=224)
    assert kept.width * kept.height <= 4_000_000
    assert kept.getpixel((0, 0)) == (255, 0, 0)
    ordinary = query_picture(picture("blue", (1600, 1200)), None, at_least=224)
    assert ordinary.size == (1600, 1200)


def test_batched_answers_are_those_of_the_bare_engine(client: TestClient, shop: Shop) -> None:
    bare = SearchEngine(open_index(shop.index), shop.encoder)
    answer = client.post(
        SEARCH, files={"image": picture("teal")}, data={"text": "gold", "minus": "navy"}
    ).json()
    hits = bare.search(image=picture("teal"), text="gold", minus="navy")
    assert [(hit["product_id"], hit["score"]) for hit in answer["hits"]] == [
        (hit.product_id, hit.score) for hit in hits
    ]
    assert not any(math.isnan(hit["score"]) for hit in answer["hits"])
