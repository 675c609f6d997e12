"""Values found in texts, and taken out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.attributes.words import Words

WORDS = Words(
    {
        "color": [
            ("Navy Blue", "Navy Blue"), ("Blue", "Blue"), ("Red", "Red"), ("Maroon", "Red"),
            ("other", "other"), ("Puce", "other"),
        ],
        "kind": [
            ("Tshirts", "Tshirts"), ("Sports Shoes", "Sports Shoes"), ("Dresses", "Dresses"),
            ("Bra", "Bra"), ("Peach", "Peach Tea"), ("Watches", "Watches"),
        ],
        "scent": [("Peach", "Peach")],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Puma navy blue tee", ["Navy Blue"]),
        ("NAVY-BLUE socks", ["Navy Blue"]),
        ("navyblue socks", ["Navy Blue"]),
        ("navy and blue", ["Blue"]),
        ("blue navy", ["Blue"]),
        ("maroon or red", ["Red", "Red"]),
        ("t-shirt, T shirts; tshirt", ["Tshirts"] * 3),
        ("a sport shoe", ["Sports Shoes"]),
        ("sports-shoes", ["Sports Shoes"]),
        ("a dress and a watch", ["Dresses", "Watches"]),
        ("two bras", ["Bra"]),
        ("peach", ["Peach Tea", "Peach"]),
        ("other puce things", []),
        ("reddish Alfred", []),
        ("", []),
        ("_red_", ["Red"]),
        ("ｒｅｄ", ["Red"]),
    ],
)
def test_what_a_text_names(text: str, values: list[str]) -> None:
    assert [mention.value for mention in WORDS.mentions(text)] == values


def test_a_mention_says_where_it_stands() -> None:
    text = "Buy T-shirts, navy blue!"
    shown = [(text[m.start : m.end], m.attribute) for m in WORDS.mentions(text)]
    assert shown == [("T-shirts", "kind"), ("navy blue", "color")]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Puma Navy Blue T-shirt for Men", "Puma for Men"),
        ("Red", ""),
        ("peach  soap", "soap"),
        ("plain soap", "plain soap"),
    ],
)
def test_a_text_without_the_values(text: str, left: str) -> None:
    assert WORDS.without(text) == left


@given(st.text(alphabet="redblu navyshirt-'.", max_size=40))
def test_mentions_lie_in_the_text_in_order_and_what_is_left_names_only_joined_rests(
    text: str,
) -> None:
    found = WORDS.mentions(text)
    starts = [mention.start for mention in found]
    assert starts == sorted(starts)
    assert all(0 <= m.start < m.end <= len(text) for m in found)
    # Taking words out never leaves more of them than there were.
    assert len(WORDS.mentions(WORDS.without(text))) <= len(found)
