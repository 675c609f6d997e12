"""Ranked answers on small catalogs of plain-coloured pictures, with scores by hand."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indexing.catalog.product import Product, ProductImage
from indexing.errors import ImageError, QueryError, WhereError
from indexing.images import decode_image
from indexing.manifest import EncoderRecord, IndexCounts, IndexRecord, Manifest, SegmentRecord
from indexing.store import OpenIndex
from indexing.table import IMAGE_SCHEMA, Images, Products, product_batch
from indexing.vectors import ExactIndex
from search.engine import MAX_K, SearchEngine
from search.hits import Hit

SAME, ONE_OFF, TWO_OFF, OPPOSITE = (c / 48.25 for c in (48.25, 16.25, -15.75, -47.75))
"""Cosine of two plain colours of full channels, by the number of channels that differ."""


def product(name: str, *colours: str, price: float | None = None, **attributes: str) -> Product:
    """A product with one plain picture a colour; the colour is the picture's location."""
    images = tuple(
        ProductImage(location=colour, role="additional" if place else "main")
        for place, colour in enumerate(colours)
    )
    return Product(id=name, title=f"the {name}", price=price, attributes=attributes, images=images)


def opened(products: list[Product], vectors: NDArray[np.float32]) -> OpenIndex:
    """An index that never was on disk: vector i is of the i-th picture of all products."""
    pictures = [(row, image) for row, item in enumerate(products) for image in item.images]
    count = len(pictures)
    manifest = Manifest(
        schema_version=4,
        shoplens_version="0",
        created=datetime.now(timezone.utc),
        version=1,
        change="made by hand",
        encoder=EncoderRecord(name="tiny", fingerprint="f" * 64, dim=vectors.shape[1]),
        match=None,
        segments=(
            SegmentRecord(
                name="s000001", index=IndexRecord(), counts=IndexCounts.none(), removed=0, files={}
            ),
        ),
        products=len(products),
        images=count,
    )
    images = [
        {
            "product": row,
            "location": image.location,
            "path": None if image.path is None else str(image.path),
            "role": image.role,
            "sha256": "0" * 64,
            "phash": 0,
        }
        for row, image in pictures
    ]
    table = Products(pa.Table.from_batches([product_batch(products)]))
    index = ExactIndex.from_vectors(vectors)
    pictures_of = Images(pa.Table.from_pylist(images, schema=IMAGE_SCHEMA))
    return OpenIndex(Path("nowhere"), manifest, (), table, pictures_of, vectors, index)


def engine_over(encoder: Any, products: list[Product]) -> SearchEngine:
    pictures = [
        Image.new("RGB", (8, 8), image.location) for item in products for image in item.images
    ]
    return SearchEngine(opened(products, encoder.embed_images(pictures)), encoder)


def ids(hits: list[Hit]) -> str:
    return " ".join(hit.product_id for hit in hits)


SHOP = [
    product("c", "cyan", price=10.0, size="40"),
    product("r", "red", price=20.0, size="41"),
    product("m", "magenta", price=30.0, size="41"),
    product("b", "blue", price=None, size="L"),
]


@pytest.fixture
def shop(tiny_encoder: Any) -> SearchEngine:
    return engine_over(tiny_encoder, SHOP)


def test_every_part_of_a_hit(shop: SearchEngine) -> None:
    hits = shop.search(text="red")
    assert ids(hits) == "r m b c"
    assert [hit.score for hit in hits] == pytest.approx(
        [SAME, ONE_OFF, TWO_OFF, OPPOSITE], abs=1e-6
    )
    fields = {"title": "the r", "price": 20.0, "size": "41"}
    assert hits[0] == Hit(1, "r", hits[0].score, "red", None, fields)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert hits[0].to_json() == {
        "rank": 1,
        "product_id": "r",
        "score": hits[0].score,
        "match": None,
        "image": "red",
        "duplicates": [],
        "fields": fields,
        "filled": {},
    }


def test_picture_and_text_ask_the_same(shop: SearchEngine, tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20), "magenta")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "photo").write_bytes(buffer.getvalue())
    expected = shop.search(text="magenta")
    assert ids(expected) == "m r b c"  # red and blue tie: the catalog's order
    for image in (picture, buffer.getvalue(), tmp_path / "photo", str(tmp_path / "photo")):
        assert shop.search(image) == expected


def test_a_photo_is_decoded_as_the_index_decodes_it(
    shop: SearchEngine, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 640), "red").save(buffer, "JPEG")
    seen: list[Image.Image] = []
    embed = tiny_encoder.embed_images
    monkeypatch.setattr(
        tiny_encoder, "embed_images", lambda pictures: seen.extend(pictures) or embed(pictures)
    )
    shop.search(buffer.getvalue())
    assert seen[0].size == decode_image(buffer.getvalue(), at_least=4).size != (640, 640)


def test_k_cuts_the_answer(shop: SearchEngine) -> None:
    everything = shop.search(text="red", k=MAX_K)
    for k in range(1, 5):
        assert shop.search(text="red", k=k) == everything[:k]


def test_crop_picks_what_is_searched(shop: SearchEngine) -> None:
    photo = Image.new("RGB", (20, 20), "red")
    photo.paste("cyan", (10, 0, 20, 20))
    assert shop.search(photo, crop=(0, 0, 0.5, 1))[0].product_id == "r"
    right = shop.search(photo, crop=(0.5, 0, 0.5, 1))[0]
    assert (right.product_id, right.score) == ("c", pytest.approx(1, abs=1e-6))


def test_weights_move_from_picture_to_text(shop: SearchEngine) -> None:
    red, scores = Image.new("RGB", (8, 8), "red"), []
    for weight in (0.0, 0.5, 1.0, 2.0, 1000.0):
        hits = shop.search(red, "blue", text_weight=weight)
        scores.append(next(hit.score for hit in hits if hit.product_id == "b"))
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(TWO_OFF, abs=1e-6)
    # Of two unit vectors at cosine c, their sum has cosine sqrt((1 + c) / 2) with each.
    assert scores[2] == pytest.approx(((1 + TWO_OFF) / 2) ** 0.5, abs=1e-6)
    assert scores[4] == pytest.approx(1, abs=1e-5)


def test_minus_pushes_down(shop: SearchEngine) -> None:
    assert ids(shop.search(text="magenta")) == "m r b c"
    # Products with m - r / 2, times 48.25: m 40.1, b 24.1, c 8.1, r -7.9.
    assert ids(shop.search(text="magenta", minus="red")) == "m b c r"
    assert ids(shop.search(text="magenta", minus=["red", "blue"], minus_weight=2.0))[0] == "c"


def test_a_product_comes_once_by_its_best_picture(tiny_encoder: Any) -> None:
    engine = engine_over(
        tiny_encoder,
        [product("many", "white", "red", "blue", "red"), product("one", "magenta")],
    )
    for colour, best in [("red", "red"), ("blue", "blue"), ("white", "white")]:
        first, second = engine.search(text=colour)
        assert (first.product_id, first.image) == ("many", best)
        assert first.score == pytest.approx(1, abs=1e-6)
        assert second.product_id == "one"
    assert ids(engine.search(text="magenta")) == "one many"


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_k_products_though_one_fills_the_first_places(tiny_encoder: Any, k: int) -> None:
    others = [product(f"m{number}", "magenta") for number in range(6)]
    engine = engine_over(tiny_encoder, [*others, product("r", *["red"] * 100)])
    expected = ["r", *(f"m{number}" for number in range(6))][:k]
    assert [hit.product_id for hit in engine.search(text="red", k=k)] == expected


def test_equal_products_come_in_catalog_order(tiny_encoder: Any) -> None:
    names = [f"p{number}" for number in np.random.default_rng(0).permutation(200)]
    engine = engine_over(tiny_encoder, [product(name, "red") for name in names])
    for k in (1, 7, 200):
        assert [hit.product_id for hit in engine.search(text="blue", k=k)] == names[:k]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("price > 100", ""),
        ("price == 10", "c"),
        ("price is missing", "b"),
        ("size == 41", "r m"),
        ("title contains 'THE'", "r m b c"),
        ("not price < 25", "m b"),
    ],
)
def test_where(shop: SearchEngine, where: str, expected: str) -> None:
    assert ids(shop.search(text="red", where=where)) == expected
    assert ids(shop.search(text="red", where=where, k=1)) == expected[:1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), max_size=25),
    st.integers(1, 12),
    st.integers(0, 10),
    st.integers(0, 2**32 - 1),
)
def test_exact_under_any_filter(rows: list[tuple[int, int]], k: int, limit: int, seed: int) -> None:
    """Against a plain loop, with directions drawn from few so that scores often tie."""
    rng = np.random.default_rng(seed)
    products = [
        product(f"p{number}", *["red"] * pictures, price=float(price))
        for number, (price, pictures) in enumerate(rows)
    ]
    owners = [number for number, (_, pictures) in enumerate(rows) for _ in range(pictures)]
    vectors = rng.choice([-1, 1], (len(owners), 4)).astype(np.float32) / 2
    query = rng.choice([-1, 1], 4).astype(np.float32) / 2

    best: dict[int, float] = {}
    for owner, vector in zip(owners, vectors, strict=True):
        if rows[owner][0] < limit:
            best[owner] = max(best.get(owner, -2.0), float(vector @ query))
    expected = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]

    class Fixed:
        image_size = 4

        def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
            return np.stack([query] * len(texts))

    engine = SearchEngine(opened(products, vectors), Fixed())  # type: ignore[arg-type]
    hits = engine.search(text="x", k=k, where=f"price < {limit}")
    assert [(hit.product_id, hit.score) for hit in hits] == [
        (f"p{owner}", score) for owner, score in expected
    ]


def test_similar_leaves_the_product_out(tiny_encoder: Any) -> None:
    engine = engine_over(
        tiny_encoder,
        [product("rb", "red", "blue"), product("b", "blue"), product("m", "magenta")],
    )
    hits = engine.similar("rb")
    assert ids(hits) == "m b"
    assert hits[0].score == pytest.approx(ONE_OFF, abs=1e-6)
    assert ids(engine.similar("b", k=1)) == "rb"
    with pytest.raises(QueryError, match="product 'zz' is not in the index"):
        engine.similar("zz")


def test_an_empty_index_answers_nothing(tiny_encoder: Any) -> None:
    index = opened([], np.empty((0, 49), np.float32))
    engine = SearchEngine(index, tiny_encoder)
    assert engine.search(text="red") == []
    assert engine.search(text="red", where="price < 5") == []


def test_threads_get_the_same_answers(shop: SearchEngine) -> None:
    queries = [(text, where) for text in ("red", "blue") for where in (None, "price < 25")] * 10
    expected = [shop.search(text=text, where=where) for text, where in queries]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda query: shop.search(text=query[0], where=query[1]), queries)
        assert list(answers) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, QueryError, "the query is empty"),
        ({"text": "red", "k": 0}, QueryError, "k is 0: must be between 1 and 10,000"),
        ({"text": "red", "k": MAX_K + 1}, QueryError, "k is 10001: must be between"),
        ({"text": "red", "crop": (0, 0, 1, 1)}, QueryError, "crop without an image"),
        ({"text": " "}, QueryError, "text is blank"),
        ({"minus": "red"}, QueryError, "minus alone is no query"),
        ({"text": "red", "minus": " "}, QueryError, "minus is blank"),
        ({"text": "red", "where": "prize < 5"}, WhereError, "did you mean price"),
        ({"text": "red", "where": ""}, WhereError, "the filter is empty"),
        ({"image": b""}, ImageError, "query picture: .*empty file"),
        ({"image": Path("no such file.png")}, ImageError, "no such file.png"),
    ],
)
def test_bad_input(
    shop: SearchEngine, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shop.search(**arguments)
    with pytest.raises(QueryError, match="k is 0"):
        shop.similar("r", k=0)
