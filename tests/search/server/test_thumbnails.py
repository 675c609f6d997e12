from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from search.server import thumbnails
from search.server.thumbnails import Thumbnails
from tests.search.server.conftest import TOKEN, Serve, Shop, code, picture

IMAGE = "/v1/indexes/shop/image"
FOR_EVER = "max-age=31536000, immutable"


@pytest.fixture
def sha(shop: Shop) -> str:
    return shop.engine.current().index.images.sha256[1]  # of blue.png


def test_an_answers_thumbnail(client: TestClient, sha: str) -> None:
    hits = client.post("/v1/indexes/shop/search", data={"text": "blue"}).json()["hits"]
    answer = client.get(hits[0]["thumbnail"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == f"public, {FOR_EVER}"
    assert answer.headers["etag"] == f'"{sha[:16]}-320"'
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size) == ("JPEG", (320, 240))
    assert shown.getpixel((100, 100)) == pytest.approx((0, 0, 255), abs=3)


def test_sizes_and_further_pictures(client: TestClient) -> None:
    small = client.get(IMAGE, params={"id": "b", "size": 160, "n": 1})
    shown = Image.open(io.BytesIO(small.content))
    assert shown.size == (160, 120)
    assert shown.getpixel((9, 9)) == pytest.approx((255, 0, 255), abs=3)
    never_enlarged = client.get(IMAGE, params={"id": "b", "size": 1280})
    assert Image.open(io.BytesIO(never_enlarged.content)).size == (400, 300)


def test_what_has_not_changed_is_not_sent_again(client: TestClient, sha: str) -> None:
    tag = f'"{sha[:16]}-320"'
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = client.get(IMAGE, params={"id": "b"}, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    other = client.get(IMAGE, params={"id": "b"}, headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize("version", [{}, {"v": "0" * 16}, {"v": ""}])
def test_without_the_right_hash_it_is_asked_for_again(
    client: TestClient, version: dict[str, str]
) -> None:
    answer = client.get(IMAGE, params={"id": "b", **version})
    assert answer.headers["cache-control"] == "no-cache"


def test_behind_a_token_it_is_private(serve: Serve, sha: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = serve(token=TOKEN).get(IMAGE, params={"id": "b", "v": sha[:16]}, headers=headers)
    assert answer.headers["cache-control"] == f"private, {FOR_EVER}"


def test_it_is_made_once(client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.get(IMAGE, params={"id": "b"}).content
    monkeypatch.setattr(thumbnails, "_small", None)  # would fail
    (shop.place / "blue.png").unlink()
    assert client.get(IMAGE, params={"id": "b"}).content == first
    assert len(list((shop.place / "thumbnails").rglob("*.jpg"))) == 1


def test_a_picture_that_is_gone(client: TestClient, shop: Shop) -> None:
    (shop.place / "blue.png").unlink()
    answer = client.get(IMAGE, params={"id": "b"})
    assert code(answer) == (404, "not_found")
    assert str(shop.place) not in answer.text
    assert code(client.post("/v1/indexes/shop/search", data={"like": "b"})) == (400, "bad_image")


def test_a_file_that_changed_since_is_not_kept(client: TestClient, shop: Shop, sha: str) -> None:
    before = (shop.place / "blue.png").read_bytes()
    (shop.place / "blue.png").write_bytes(picture("red"))
    answer = client.get(IMAGE, params={"id": "b", "v": sha[:16]})
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    assert Image.open(io.BytesIO(answer.content)).getpixel((0, 0))[0] > 250
    (shop.place / "blue.png").write_bytes(before)
    again = client.get(IMAGE, params={"id": "b", "v": sha[:16]})
    assert Image.open(io.BytesIO(again.content)).getpixel((0, 0))[2] > 250
    assert again.headers["cache-control"] == f"public, {FOR_EVER}"


def test_where_nothing_can_be_kept_it_is_sent_all_the_same(shop: Shop, sha: str) -> None:
    (shop.place / "file").write_text("")
    found = Thumbnails(shop.place / "file" / "below").get(shop.place / "blue.png", sha, 160)
    assert (found.current, found.cached) == (True, False)
    assert Image.open(io.BytesIO(found.data)).size == (160, 120)


def test_a_picture_on_another_server_has_no_thumbnail(
    client: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexing.table import Images

    monkeypatch.setattr(Images, "path", lambda _self, _row: None)
    hits = client.post("/v1/indexes/shop/search", data={"text": "blue"}).json()["hits"]
    assert hits[0]["thumbnail"] is None
    product = client.get("/v1/indexes/shop/product", params={"id": "b"}).json()
    assert [one["thumbnail"] for one in product["images"]] == [None, None]
    assert code(client.get(IMAGE, params={"id": "b"})) == (404, "not_found")
    assert code(client.post("/v1/indexes/shop/search", data={"like": "b"})) == (400, "bad_image")


def test_two_threads_make_it_once(shop: Shop, sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    made: list[Path] = []
    read = thumbnails.read_bytes
    monkeypatch.setattr(thumbnails, "read_bytes", lambda path: made.append(path) or read(path))
    kept = Thumbnails(shop.place / "thumbnails")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept.get(shop.place / "blue.png", sha, 320), range(8)))
    assert len(made) == 1
    assert len({one.data for one in found}) == 1
