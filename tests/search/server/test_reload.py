"""A new version of the index while the server answers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.update import delete_products, update_index
from search import live
from search.server import opening
from search.server.batching import BatchingEncoder
from tests.conftest import TinyEncoder
from tests.search.server.conftest import Shop, ids, picture

SEARCH = "/v1/indexes/shop/search"


def change(shop: Shop, number: int, classifier: Any) -> None:
    (shop.place / "new.csv").write_text(
        f"id,title,price,image\nn{number},New mug,{number},red.png\nb,Blue {number},1,blue.png\n"
    )
    update_index(
        read_catalog(shop.place / "new.csv"), shop.encoder, shop.index, classifiers=[classifier]
    )


def test_no_request_fails_and_none_mixes_two_versions(
    client: TestClient, shop: Shop, tiny_classifier: Any
) -> None:
    stop, problems, versions = threading.Event(), [], set()
    first = threading.Barrier(4)

    def ask() -> None:
        rounds = 0
        while not stop.is_set() or rounds < 2:
            answer = client.post(SEARCH, data={"text": "red", "facets": "kind"})
            if answer.status_code != 200:
                problems.append(answer.text)
            else:
                body = answer.json()
                versions.add(body["version"])
                blue = next(hit for hit in body["hits"] if hit["product_id"] == "b")
                if blue["title"] not in ("Blue mug", f"Blue {body['version']}"):
                    problems.append(f"version {body['version']} says {blue['title']}")
                for hit in body["hits"][:2]:
                    shown = client.get(hit["thumbnail"])
                    if shown.status_code != 200:
                        problems.append(shown.text)
            if not rounds:
                first.wait()
            rounds += 1

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    first.wait()
    for number in range(2, 7):
        change(shop, number, tiny_classifier)
    stop.set()
    for asker in askers:
        asker.join()
    assert problems == []
    assert 1 in versions
    assert client.post(SEARCH, data={"text": "red"}).json()["version"] == 6
    assert client.get("/readyz").json() == {"indexes": {"shop": 6}}


def test_a_deleted_product_and_a_new_picture(client: TestClient, shop: Shop) -> None:
    before = client.get("/v1/indexes/shop/product", params={"id": "b"}).json()["images"][0]
    delete_products(shop.index, ["y"])
    assert client.get("/v1/indexes/shop/product", params={"id": "y"}).status_code == 404
    assert "y" not in ids(client.post(SEARCH, data={"text": "yellow"}))
    assert client.get(before["thumbnail"]).headers["cache-control"].endswith("immutable")


def test_an_index_of_another_model_is_batched_too(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TinyEncoder("other")
    loaded = []

    def load(name: str) -> TinyEncoder:
        loaded.append(name)
        return [shop.encoder, other][len(loaded) - 1]

    monkeypatch.setattr(opening, "load_encoder", load)
    monkeypatch.setattr(live, "load_encoder", None)
    engines = opening.open_engines({"one": shop.index, "two": shop.index})
    one, two = (engine.current().encoder for engine in engines.values())
    assert one is two  # one model in memory for both
    assert loaded == ["tiny"]
    (shop.place / "z.csv").write_text("id,image\nz,gold.png\n")
    (shop.place / "gold.png").write_bytes(picture("gold"))
    build_index(read_catalog(shop.place / "z.csv"), other, shop.index)
    engines["one"].current()
    engines["one"]._live.wait()
    encoder = engines["one"].current().encoder
    assert isinstance(encoder, BatchingEncoder)
    assert encoder.fingerprint == other.fingerprint
    assert [hit.product_id for hit in engines["one"].search(text="red")] == ["z"]
