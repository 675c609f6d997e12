"""Profiles: each kind of catalog is recognised and read as merchants export it."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.catalog import Catalog, Product, Reject, read_catalog


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def read(path: Path, **options: Any) -> tuple[Catalog, list[Product], list[Reject]]:
    rejects: list[Reject] = []
    catalog = read_catalog(path, on_reject=rejects.append, **options)
    return catalog, list(catalog), rejects


def pictures(product: Product) -> list[tuple[str, str]]:
    return [(image.location, image.role) for image in product.images]


GOOGLE_TSV = [
    "id\ttitle\tdescription\timage link\tadditional image link\tadditional image link\tprice\t"
    "sale price\tavailability\tbrand\tgoogle product category\tproduct type\tcustom label 0",
    "p1\tHat\tWarm\thttps://x/1.jpg\thttps://x/2.jpg, https://x/3.jpg\thttps://x/4.jpg\t"
    "1,299.00 USD\t999 USD\tin_stock\tAcme\t173\tHats > Wool\t",
    "p2\tCap\t\thttps://x/5.jpg\t\t\t12,99 EUR\t\tout of stock\t\t173\t\tx",
]
GOOGLE_RSS = """<?xml version="1.0" encoding="ISO-8859-1"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item><g:id>p1</g:id><title>Hat</title><g:title>Hat</g:title>
<description>Warm &amp; dry, caf\xe9</description>
<g:image_link>https://x/1.jpg</g:image_link>
<g:additional_image_link>https://x/2.jpg</g:additional_image_link>
<g:additional_image_link>https://x/3.jpg</g:additional_image_link>
<g:price>12.99 USD</g:price><g:availability>in_stock</g:availability><g:brand>Acme</g:brand>
<g:product_type>Hats</g:product_type><g:shipping><g:price>5 USD</g:price></g:shipping>
<g:color>red</g:color></item></channel></rss>"""
GOOGLE_ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">
<title>Shop</title><entry><g:id>p1</g:id><title>Hat</title><summary>Warm</summary>
<link rel="alternate" href="https://shop/p1"/><g:image_link>a.jpg</g:image_link></entry></feed>"""


def test_google_tsv(tmp_path: Path) -> None:
    (tmp_path / "feed.tsv").write_text("\n".join(GOOGLE_TSV))
    catalog, [hat, cap], rejects = read(tmp_path / "feed.tsv", allow_urls=True)
    assert (catalog.profile, rejects) == ("google", [])
    assert (hat.price, hat.currency, hat.availability) == (1299.0, "USD", "in_stock")
    assert (hat.brand, hat.category, hat.description) == ("Acme", "Hats > Wool", "Warm")
    assert hat.attributes == {"sale price": "999 USD", "google product category": "173"}
    assert pictures(hat) == [
        ("https://x/1.jpg", "main"),
        *((f"https://x/{n}.jpg", "additional") for n in (2, 3, 4)),
    ]
    assert all(image.path is None for image in hat.images)
    assert (cap.price, cap.currency, cap.availability) == (12.99, "EUR", "out of stock")
    assert (cap.category, cap.attributes) == ("173", {"custom label 0": "x"})


def test_urls_are_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "feed.tsv").write_text("\n".join(GOOGLE_TSV))
    catalog, products, rejects = read(tmp_path / "feed.tsv")
    assert products == []
    assert astuple(catalog.counts) == (2, 0, 0, 2, 0, 0)
    assert "URLs are not fetched unless --allow-urls" in rejects[0].reason


def test_google_rss(tmp_path: Path) -> None:
    (tmp_path / "feed.xml").write_bytes(GOOGLE_RSS.encode("latin-1"))
    catalog, [hat], _ = read(tmp_path / "feed.xml", allow_urls=True)
    assert catalog.profile == "google"
    assert (hat.id, hat.title, hat.description) == ("p1", "Hat", "Warm & dry, café")
    assert (hat.price, hat.currency, hat.brand, hat.category) == (12.99, "USD", "Acme", "Hats")
    assert [image.location[-5] for image in hat.images] == ["1", "2", "3"]
    assert hat.attributes == {"color": "red"}


def test_google_atom(tmp_path: Path) -> None:
    (tmp_path / "feed.atom").write_text(GOOGLE_ATOM)
    catalog, [hat], _ = read(tmp_path / "feed.atom")
    assert catalog.profile == "google"
    assert (hat.title, hat.description) == ("Hat", "Warm")
    assert hat.attributes == {"link": "https://shop/p1"}


def test_the_feed_without_a_declared_prefix(tmp_path: Path) -> None:
    (tmp_path / "feed.xml").write_text(GOOGLE_ATOM.replace("xmlns:g", "about"))
    _, [hat], _ = read(tmp_path / "feed.xml")
    assert (hat.id, pictures(hat)) == ("p1", [("a.jpg", "main")])


SHOPIFY_OLD = """\
Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Option1 Name,Option1 Value,Variant SKU,\
Variant Price,Image Src,Image Position,Image Alt Text,Variant Image,Status
hat,Hat,<p>Warm &amp; <b>dry</b></p>,Acme,Hats,Caps,"wool, red",Size,S,H-S,10,b.jpg,2,,,active
hat,,,,,,,,M,H-M,12.00,a.jpg,1,,v.jpg,
hat,,,,,,,,,,,c.jpg,3,,,
cap,Cap,,,,Caps,,,,,,d.jpg,,,,draft
belt,Belt,,,,,,,,,,,,,,active
"""
SHOPIFY_NEW = """\
Title,URL handle,Description,Vendor,Product category,Type,Tags,Status,SKU,Option1 name,\
Option1 value,Price,Product image URL,Image position,Image alt text
Hat,hat,<p>Warm</p>,Acme,,Hats,,Active,H-S,Size,S,10.00,b.jpg,2,
,hat,,,,,,,H-M,,M,12.00,a.jpg,1,
Cap,cap,,,,,,Active,C,,,5,c.jpg,1,
"""


def test_shopify_old_columns(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text(SHOPIFY_OLD)
    catalog, [hat, cap], [reject] = read(tmp_path / "products.csv")
    assert catalog.profile == "shopify"
    assert astuple(catalog.counts) == (5, 2, 2, 1, 0, 0)
    assert (hat.id, hat.title, hat.description, hat.brand) == ("hat", "Hat", "Warm & dry", "Acme")
    assert (hat.category, hat.price) == ("Hats", 10.0)
    assert [image.location for image in hat.images] == ["a.jpg", "b.jpg", "c.jpg", "v.jpg"]
    assert hat.images[0].role == "main"
    assert hat.attributes == {
        **{"Type": "Caps", "Tags": "wool, red", "Option1 Name": "Size", "Option1 Value": "S, M"},
        **{"Variant SKU": "H-S, H-M", "Status": "active"},
    }
    assert (cap.category, cap.price, cap.attributes) == ("Caps", None, {"Status": "draft"})
    assert (reject.row, reject.id, reject.reason) == (5, "belt", "the row names no picture")


def test_shopify_new_columns(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text(SHOPIFY_NEW)
    catalog, [hat, cap], _ = read(tmp_path / "products.csv")
    assert catalog.profile == "shopify"
    assert astuple(catalog.counts) == (3, 2, 1, 0, 0, 0)
    assert (hat.id, hat.description, hat.price) == ("hat", "Warm", 10.0)
    assert pictures(hat) == [("a.jpg", "main"), ("b.jpg", "additional")]
    assert hat.attributes["SKU"] == "H-S, H-M"
    assert (cap.id, cap.price) == ("cap", 5.0)


def test_a_shopify_handle_that_comes_back_is_a_duplicate(tmp_path: Path) -> None:
    rows = "Handle,Title,Image Src\na,A,1.jpg\na,,2.jpg\n,lost,4.jpg\n,lost,4.jpg\nb,B,3.jpg\n"
    rows += "a,Again,5.jpg\na,,6.jpg\n"
    (tmp_path / "products.csv").write_text(rows)
    for keep, title in (("first", "A"), ("last", "Again")):
        catalog, products, rejects = read(tmp_path / "products.csv", on_duplicate=keep)
        assert sorted(product.title for product in products) == sorted(["B", title])
        assert all(len(product.images) == 2 for product in products if product.id == "a")
        assert astuple(catalog.counts) == (7, 2, 2, 3, 0, 0)
        assert [reject.row for reject in rejects if reject.id is None] == [3, 4]
        assert {reject.field for reject in rejects} == {"id"}


SCHEMA_ORG = {
    "@context": "https://schema.org/",
    "@type": "Product",
    "@id": "https://shop/hat",
    "sku": 17,
    "name": "Hat",
    "description": "Warm",
    "brand": {"@type": "Brand", "name": "Acme"},
    "category": ["Apparel", "Hats"],
    "color": "red",
    "image": ["a.jpg", {"@type": "ImageObject", "contentUrl": "b.jpg"}],
    "additionalProperty": [{"@type": "PropertyValue", "name": "Fit", "value": "loose"}],
    "offers": [
        {"price": "12.50", "priceCurrency": "EUR", "availability": "https://schema.org/InStock"}
    ],
}
PLAIN = {
    "@type": ["Thing", "https://schema.org/Product"],
    "@id": "x",
    "name": "X",
    "image": "x.jpg",
}
PAGE = {"@type": "WebPage", "name": "Our shop"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines([SCHEMA_ORG, PLAIN])),
        ("a.json", json.dumps([SCHEMA_ORG, PLAIN]).encode()),
        ("a.jsonld", json.dumps({"@graph": [PAGE, SCHEMA_ORG, PLAIN]}, indent=1).encode()),
        ("b.jsonld", json.dumps({"@graph": [SCHEMA_ORG, PAGE, PLAIN]}).encode()),
        (
            "c.jsonld",
            json.dumps(
                {"@type": "ItemList", "itemListElement": [{"item": SCHEMA_ORG}, PLAIN]}, indent=1
            ).encode(),
        ),
    ],
)
def test_schema_org(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    catalog, [hat, plain], rejects = read(tmp_path / name)
    assert (catalog.profile, rejects) == ("schema_org", [])
    assert hat == Product(
        id="17",
        title="Hat",
        description="Warm",
        brand="Acme",
        category="Apparel > Hats",
        price=12.5,
        currency="EUR",
        availability="InStock",
        attributes={"Fit": "loose", "@id": "https://shop/hat", "color": "red"},
        images=hat.images,
    )
    assert pictures(hat) == [("a.jpg", "main"), ("b.jpg", "additional")]
    assert (plain.id, plain.title, plain.attributes) == ("x", "X", {})


def test_one_schema_org_product_and_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SCHEMA_ORG, indent=1))
    assert [product.id for product in read_catalog(tmp_path / "a.json")] == ["17"]
    (tmp_path / "a.jsonl").write_bytes(json_lines([{**PLAIN, "@type": "Recipe"}, PLAIN]))
    _, [product], [reject] = read(tmp_path / "a.jsonl")
    assert (reject.row, reject.field, reject.value) == (1, "@type", "Recipe")
    assert product.id == "x"


ESCI = {
    **{"product_id": "B01", "product_title": "Hat", "product_description": "<b>Warm</b><br>dry"},
    **{"product_bullet_point": "wool", "product_brand": "Acme", "product_color": "red"},
    **{"product_locale": "us"},
}


def test_esci_products_find_their_pictures_by_id(tmp_path: Path) -> None:
    rows = [ESCI, {**ESCI, "product_id": "B02"}, {**ESCI, "product_id": "../B01"}]
    rows += [{**ESCI, "product_id": "B03"}]
    (tmp_path / "products.parquet").write_bytes(parquet_bytes(rows))
    root = tmp_path / "pictures"
    (root / "B03").mkdir(parents=True)
    for name in ("B01.png", "B03/2.jpg", "B03/1.jpg"):
        (root / name).write_bytes(b"")
    catalog, [hat, cap], rejects = read(tmp_path / "products.parquet", images_root=root)
    assert catalog.profile == "esci"
    assert (hat.id, hat.title, hat.description, hat.brand) == ("B01", "Hat", "Warm dry", "Acme")
    assert hat.attributes == {
        **{"product_bullet_point": "wool", "product_color": "red", "product_locale": "us"}
    }
    assert pictures(hat) == [("B01.png", "main")]
    assert hat.images[0].path == root / "B01.png"
    assert pictures(cap) == [("B03/1.jpg", "main"), ("B03/2.jpg", "additional")]
    assert [(reject.row, reject.id) for reject in rejects] == [(2, "B02"), (3, "../B01")]
    assert "no picture named by the id" in rejects[0].reason
    assert "'..'" in rejects[1].reason


AMAZON = {
    "main_category": "Fashion",
    "title": "Hat",
    "average_rating": 4.5,
    "features": ["wool", "warm"],
    "description": ["One.", "Two."],
    "price": "None",
    "images": [
        {"thumb": "t1.jpg", "large": "l1.jpg", "variant": "PT01", "hi_res": None},
        {"thumb": "t2.jpg", "large": "l2.jpg", "variant": "MAIN", "hi_res": "h2.jpg"},
        {"thumb": "t3.jpg", "large": None, "variant": "PT02", "hi_res": None},
    ],
    "videos": [],
    "store": "Acme",
    "categories": ["Men", "Hats"],
    "details": {"Color": "red", "Rank": {"Hats": 3}},
    "parent_asin": "B07",
    "bought_together": None,
}
COLUMNS = {
    key: [image.get(key) for image in AMAZON["images"]]  # type: ignore[attr-defined]
    for key in ("hi_res", "large", "thumb", "variant")
}
AMAZON_2 = {**AMAZON, "images": COLUMNS, "details": '{"Color": "red"}'}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.jsonl", json_lines([AMAZON])),
        ("meta2.jsonl.gz", gzip.compress(json_lines([AMAZON_2]))),
        ("meta.parquet", parquet_bytes([AMAZON_2])),
    ],
)
def test_amazon_reviews_2023(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    catalog, [hat], _ = read(tmp_path / name)
    assert catalog.profile == "amazon_reviews_2023"
    assert (hat.id, hat.title, hat.description) == ("B07", "Hat", "One.\nTwo.")
    assert (hat.brand, hat.category, hat.price) == ("Acme", "Fashion", None)
    assert pictures(hat) == [
        ("h2.jpg", "main"),
        ("l1.jpg", "additional"),
        ("t3.jpg", "additional"),
    ]
    assert hat.attributes == {
        **{"Color": "red", "average_rating": "4.5", "features": "wool, warm"},
        "categories": "Men, Hats",
    }


def test_amazon_rows_with_less(tmp_path: Path) -> None:
    bare = {"parent_asin": "B1", "images": ["a.jpg"], "features": ["f"], "description": []}
    bad: dict[str, Any] = {"parent_asin": "B2", "images": [], "details": None}
    worse = {"parent_asin": "B3", "images": ["a.jpg"], "details": "{"}
    (tmp_path / "meta.jsonl").write_bytes(json_lines([bare, bad, worse]))
    _, [product], rejects = read(tmp_path / "meta.jsonl")
    assert (product.description, product.images[0].location) == ("f", "a.jpg")
    assert [(r.row, r.field) for r in rejects] == [(2, "image"), (3, "details")]


def test_generic_pictures_with_roles(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "images": [{"path": "a.jpg", "role": "photo"}, {"url": "b.jpg", "role": "main"}]},
        {"id": 2, "images": [{"path": "a.jpg", "role": "iconic"}, {"path": "b.jpg"}]},
        {"id": 3, "images": ["/x.jpg", "b.jpg", "b.jpg"], "picture": "c.jpg", "tags": ["x", "y"]},
    ]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    _, products, [reject] = read(tmp_path / "a.jsonl")
    assert [pictures(product) for product in products] == [
        [("b.jpg", "main"), ("a.jpg", "additional")],
        [("a.jpg", "main"), ("b.jpg", "additional")],
        [("b.jpg", "main"), ("c.jpg", "additional")],
    ]
    assert products[2].attributes == {"tags": "x, y"}
    assert (reject.row, reject.scope) == (3, "image")


def test_ids_of_two_columns_never_mix(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,id,image\ns1,1,a.jpg\ns2,,a.jpg\n")
    _, [product], [reject] = read(tmp_path / "a.csv")
    assert (product.id, product.attributes) == ("1", {"sku": "s1"})
    assert (reject.row, reject.reason) == (2, "the id is missing")


def test_of_columns_that_differ_in_case_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ID,Title,title,image\n1,Hat,Cap,a.jpg\n")
    [product] = read_catalog(tmp_path / "a.csv")
    assert (product.id, product.title, product.attributes) == ("1", "Hat", {"title": "Cap"})


def test_mapping_names_the_columns(tmp_path: Path) -> None:
    text = "Code,Was,Now,Shot,id,title\nx1,9,8,a.jpg,1,Hat\n"
    (tmp_path / "a.csv").write_text(text)
    mapping = {"id": "Code", "image": "shot", "price": "Now"}
    catalog, [product], _ = read(tmp_path / "a.csv", mapping=mapping)
    assert catalog.profile == "generic"
    assert (product.id, product.price, product.title) == ("x1", 8.0, "Hat")
    assert product.attributes == {"Was": "9", "id": "1"}


def test_mapping_in_a_named_profile(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text(SHOPIFY_NEW)
    mapping = {"brand": "Type", "price": "SKU"}
    _, _, rejects = read(tmp_path / "products.csv", profile="shopify", mapping=mapping)
    assert [(r.id, r.field, r.value, r.scope) for r in rejects] == [
        ("hat", "price", "H-S", "field"),
        ("cap", "price", "C", "field"),
    ]
    _, [hat, _], _ = read(
        tmp_path / "products.csv", profile="shopify", mapping={"brand": "Type", "title": "SKU"}
    )
    assert (hat.brand, hat.title) == ("Hats", "H-S")


def test_mapping_leaves_the_profile_recognised(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text(SHOPIFY_OLD)
    mapping = {"title": "Image Alt Text", "brand": "Type"}
    catalog, [hat, cap], _ = read(tmp_path / "products.csv", mapping=mapping)
    assert catalog.profile == "shopify"
    assert (hat.title, hat.brand, hat.price, len(hat.images)) == ("", "Caps", 10.0, 4)
    assert (cap.id, cap.attributes["Title"]) == ("cap", "Cap")
    # What the profile needs and does not find, the mapping gives.
    (tmp_path / "products.csv").write_text("URL handle,Title,Shot\nhat,Hat,a.jpg\nhat,,b.jpg\n")
    catalog, [hat], _ = read(tmp_path / "products.csv", mapping={"image": "Shot"})
    assert catalog.profile == "shopify"
    assert [image.location for image in hat.images] == ["a.jpg", "b.jpg"]


def test_rows_are_those_where_products_begin(tmp_path: Path) -> None:
    rows = (
        "Handle,Title,Image Src\na,A,1.jpg\n,broken,\nb,B,2.jpg\nb,,3.jpg\nb,,/4.jpg\nc,C,5.jpg\n"
    )
    (tmp_path / "products.csv").write_text(rows)
    asked: list[Reject] = []
    rejects: list[Reject] = []
    catalog = read_catalog(tmp_path / "products.csv", on_reject=asked.append)
    found = [(row, product.id) for row, product in catalog.read(rejects.append)]
    assert found == [(1, "a"), (3, "b"), (6, "c")]
    assert [(reject.row, reject.scope) for reject in rejects] == [(2, "row"), (3, "image")]
    assert asked == rejects
    assert astuple(catalog.counts) == (6, 3, 2, 1, 1, 0)
    # Without it, only the one that the catalog was opened with.
    assert [product.id for product in catalog] == ["a", "b", "c"]
    assert (len(asked), len(rejects)) == (4, 2)
