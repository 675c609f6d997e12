"""Ids, prices and texts as they stand in cells."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.catalog.drafts import column_key, pictures_of
from indexing.catalog.rows import RowError
from indexing.catalog.values import (
    as_attribute,
    as_currency,
    as_id,
    as_price,
    as_text,
    strip_html,
)


@pytest.mark.parametrize(
    ("cell", "price"),
    [
        (12.99, (12.99, "")),
        (0, (0.0, "")),
        (Decimal("12.99"), (12.99, "")),
        ("12.99", (12.99, "")),
        (" 12.99 USD ", (12.99, "USD")),
        ("USD 12.99", (12.99, "USD")),
        ("USD12.99", (12.99, "USD")),
        ("$12.99", (12.99, "USD")),
        ("CA$ 12.99", (12.99, "CAD")),
        ("12,99 €", (12.99, "EUR")),
        ("12,99 EUR", (12.99, "EUR")),
        ("1,299.00 USD", (1299.0, "USD")),
        ("1.299,00 EUR", (1299.0, "EUR")),
        ("1,299", (1299.0, "")),
        ("1.299", (1.299, "")),
        ("1,234,567.5", (1234567.5, "")),
        ("1.234.567", (1234567.0, "")),
        ("1 299,50 zł", (1299.5, "PLN")),
        ("1\u00a0299,50", (1299.5, "")),
        ("1'299.50 CHF", (1299.5, "CHF")),
        ("1 234 567", (1234567.0, "")),
        ("12.99 usd", (12.99, "USD")),
        ("Eur 12,99", (12.99, "EUR")),
        ("Rs. 1,299", (1299.0, "INR")),
        ("Rs.1,299.50", (1299.5, "INR")),
        ("5 XTS", (5.0, "XTS")),
        (".99", (0.99, "")),
        ("$.99", (0.99, "USD")),
        ("", (None, "")),
        ("  ", (None, "")),
        (None, (None, "")),
    ],
)
def test_a_price(cell: Any, price: tuple[float | None, str]) -> None:
    assert as_price(cell) == price


@pytest.mark.parametrize(
    "cell",
    [
        *("12.99 Pcs", "10 per", "from 4.99", "N/A", "10.00-20.00 USD"),
        *("free", "12.99 pcs", "1,2,3", "12.34.56", "1,29,900", "12 99", "12.99.", "USD", "$"),
        *("-5", "1e5", "5 - 10", "1_000", "१२", float("inf"), -1, True, {"a": 5}, ["5"]),
        *(Decimal("NaN"), 10**400),
    ],
)
def test_no_price(cell: Any) -> None:
    with pytest.raises(RowError) as caught:
        as_price(cell)
    assert caught.value.field == "price"


@given(
    cents=st.integers(0, 10**12),
    point=st.sampled_from([".", ","]),
    grouped=st.booleans(),
    unit=st.sampled_from(
        [("", "", ""), ("$", "", "USD"), ("", " EUR", "EUR"), ("GBP ", "", "GBP")]
    ),
)
def test_every_way_to_write_an_amount_reads_back(
    cents: int, point: str, grouped: bool, unit: tuple[str, str, str]
) -> None:
    whole, part = divmod(cents, 100)
    digits = f"{whole:,}" if grouped else str(whole)
    written = f"{digits}.{part:02}".translate({ord(","): "." if point == "," else ",", 46: point})
    assert as_price(unit[0] + written + unit[1]) == (cents / 100, unit[2])


@pytest.mark.parametrize(
    ("cell", "product_id"),
    [
        ("007", "007"),
        (" 1.0 ", "1.0"),
        ("Größe/42", "Größe/42"),
        ("a\u00a0b", "a\u00a0b"),
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        (2**63 + 1, "9223372036854775809"),
        (-3, "-3"),
        (Decimal("12"), "12"),
        (b"sku", "sku"),
    ],
)
def test_an_id(cell: Any, product_id: str) -> None:
    assert as_id(cell) == product_id


@pytest.mark.parametrize(
    "cell",
    [
        *(None, "", "  ", "nan", "NaN", "<NA>", "None", "null", float("nan"), float("-inf")),
        *(2.0**60, True, [], {}, ["1"], b"\xff", "a\nb", "a\x00", "\ud800", "a\x85b"),
    ],
)
def test_no_id(cell: Any) -> None:
    with pytest.raises(RowError) as caught:
        as_id(cell)
    assert caught.value.field == "id"


@given(st.integers(-(2**53), 2**53))
def test_an_integer_id_is_the_same_in_every_column_type(number: int) -> None:
    assert as_id(number) == as_id(float(number)) == as_id(str(number)) == str(number)


def test_texts() -> None:
    assert as_text("title", ["a", None, "", "b", "a"], ", ") == "a, b"
    assert as_text("title", " a\x1b[31mb\nc ") == "a [31mb\nc"
    assert as_text("title", 3.0) == "3"
    assert as_text("title", float("nan")) == ""
    assert as_attribute("flag", True) == "true"
    assert as_attribute("tags", ["a", 1, False]) == "a, 1, false"
    assert as_attribute("dims", {"w": 1}) == ""
    assert as_attribute("rows", [{"w": 1}]) == ""


def test_html_becomes_text() -> None:
    markup = "<p>Warm &amp; dry:<br/>3 < 5 > 2</p><style>p{}</style><SCRIPT>x<b>y</SCRIPT><li>end"
    assert strip_html(markup) == "Warm & dry: 3 < 5 > 2 end"


@pytest.mark.parametrize(
    ("piece", "kept"),
    [("<!--", 1), ("<a ", 1), ("</", 1), ('<a b="', 1), ("<script>", 0), ("<style></", 0)],
)
def test_html_that_is_all_beginnings_takes_linear_time(piece: str, kept: int) -> None:
    # html.parser would be at this for minutes.
    times = 200_000
    assert strip_html(piece * times).replace(" ", "") == piece.replace(" ", "") * times * kept


@pytest.mark.parametrize(
    ("cell", "locations"),
    [
        ("a.jpg", ["a.jpg"]),
        (" a.jpg | b.png |", ["a.jpg", "b.png"]),
        ("a.jpg;b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg, b.jpg", ["a.jpg", "b.jpg"]),
        ("Shirt, red.jpg", ["Shirt, red.jpg"]),
        ("a|b.jpg", ["a|b.jpg"]),
        ("http://x/1,https://x/2", ["http://x/1", "https://x/2"]),
        ("https://x/f_auto,q_80/a.jpg", ["https://x/f_auto,q_80/a.jpg"]),
        ('["a.jpg", "b, c.jpg"]', ["a.jpg", "b, c.jpg"]),
        ("[draft] a.jpg", ["[draft] a.jpg"]),
        (["a.jpg", "", None, {"url": "b.jpg"}], ["a.jpg", "b.jpg"]),
        ({"path": "a.jpg"}, ["a.jpg"]),
        (float("nan"), []),
        (None, []),
    ],
)
def test_pictures_of_a_cell(cell: Any, locations: list[str]) -> None:
    assert [picture.location for picture in pictures_of(cell)] == locations


def test_column_names_in_one_spelling() -> None:
    spellings = [
        "image_link",
        "Image Link",
        " g:image_link ",
        "image-link",
        "imageLink",
        "IMAGE_LINK",
    ]
    assert {column_key(name) for name in spellings} == {"image_link"}
    assert column_key("Body (HTML)") == "body_(html)"
    assert column_key("productID") == "product_id"


@pytest.mark.parametrize(
    ("cell", "currency"),
    [("USD", "USD"), (" usd ", "USD"), ("€", "EUR"), ("Rs.", "INR"), ("pts", "pts"), (None, "")],
)
def test_a_currency(cell: Any, currency: str) -> None:
    assert as_currency(cell) == currency


@pytest.mark.parametrize("cell", ["US Dollars", "x" * 9, {"code": "USD"}, True, "\ud800"])
def test_no_currency(cell: Any) -> None:
    with pytest.raises(RowError) as caught:
        as_currency(cell)
    assert caught.value.field == "currency"
