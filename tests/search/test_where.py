"""The filter language, against a plain Python evaluator and by hand."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexing.errors import WhereError
from search.where import MAX_LENGTH, MAX_NESTING, MAX_TESTS, compile_where


class Rows:
    """A table of dicts: the smallest thing that a filter accepts."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str]) -> None:
        self._rows, self._names = rows, names

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        return self._names

    def column(self, name: str) -> NDArray[Any]:
        values = [row.get(name) for row in self._rows]
        if name == "price":
            return np.array([math.nan if value is None else value for value in values], np.float64)
        column = np.empty(len(values), object)
        column[:] = values
        return column


NAMES = ["id", "title", "color", "price", "size", "heel height", "Ärmel"]
SHOP = Rows(
    [
        {"id": "a", "title": "Blue Mug", "color": "Blue", "price": 5.0, "size": "40"},
        {"id": "b", "title": "red mug", "color": "RED", "price": 50.0, "size": " 41.5 "},
        {"id": "c", "title": "Straße's end", "color": None, "price": None, "size": "XL"},
        {"id": "d", "title": 'A "plate"', "color": "", "price": 10.0, "heel height": "4e1"},
        {"id": "e", "title": "back\\slash", "color": "red", "price": -1.0, "Ärmel": "lang"},
    ],
    NAMES,
)


def matching(expression: str) -> str:
    mask = compile_where(expression).mask(SHOP)
    assert mask.dtype == np.bool_
    assert mask.shape == (5,)
    return "".join(np.array(["a", "b", "c", "d", "e"])[mask])


@pytest.mark.parametrize(
    ("expression", "ids"),
    [
        ("price < 50", "ade"),
        ("price <= 50", "abde"),
        ("price >= 5.0 and price != 10", "ab"),
        ("price == -1", "e"),
        ("price == 1e1", "d"),
        ("50>price", "ade"),
        ("10 <= price < 50", "d"),
        ("50 > price > 1 != price", "ad"),
        ("price in [5, 10.0, 7,]", "ad"),
        ("price not in [5, 10]", "be"),
        ("color == 'Red'", "be"),
        ('"rEd" == color', "be"),
        ("color != 'red'", "a"),
        ("not color == 'red'", "acd"),
        ("color in ['BLUE', 'green']", "a"),
        ("color not in ['blue']", "be"),
        ("not (color in ['blue'])", "bcde"),
        ("color is null", "cd"),
        ("color is missing", "cd"),
        ("color is not null", "abe"),
        ("price IS NOT Missing", "abde"),
        ("title contains 'MUG'", "ab"),
        ("color not contains 'u'", "be"),
        ("title contains 'STRASSE'", "c"),
        (r"title contains 'e\'s'", "c"),
        ('title contains "\'s e"', "c"),
        (r'title contains "\"plate\""', "d"),
        (r"title contains '\\S'", "e"),
        ("title < 'blue n'", "ade"),
        ("size > 40", "b"),
        ("size >= 40", "ab"),
        ("size != 40", "b"),
        ("size not in [40]", "b"),
        ("size == 'xl'", "c"),
        ("size == '40.0'", ""),
        ("`heel height` == 40", "d"),
        ("`heel height` is not missing", "d"),
        ("ärmel == 'Lang'", "e"),
        ("Price < 6 AND Color == 'blue'", "a"),
        ("price == 5 or price == 10 and color == 'red'", "a"),
        ("(price == 5 or price == 50) and color == 'red'", "b"),
        ("not price == 5 and color is not null", "be"),
        ("not not price == 5", "a"),
        ("not (price < 50 or color == 'red')", "c"),
        ("\n price\t<  50 ", "ade"),
        ("id == 'B'", "b"),
    ],
)
def test_by_hand(expression: str, ids: str) -> None:
    assert matching(expression) == ids


def test_a_filter_can_be_used_again_on_another_table() -> None:
    where = compile_where("price < 50")
    assert where.text == "price < 50"
    assert where.mask(SHOP).sum() == 3
    assert where.mask(Rows([], NAMES)).shape == (0,)


def test_back_quotes_and_case_in_names() -> None:
    table = Rows(
        [{"and": "x", "a`b": "y", "Color": "1", "color": "2"}], ["and", "a`b", "Color", "color"]
    )
    assert compile_where("`and` == 'x' and `a``b` == 'y'").mask(table).all()
    assert compile_where("Color == '1' and color == '2'").mask(table).all()
    with pytest.raises(WhereError, match="did you mean Color or color"):
        compile_where("COLOR == '1'").mask(table)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the filter is empty"),
        ("  ", "the filter is empty"),
        ("price", r"expected a test after the field.*character 6, at the \^: price\^\)"),
        ("price < ", r"expected a field or a value \(character 9, at the \^: price < \^\)"),
        ("price < and", r"expected a field or a value \(character 9.*price < \^and"),
        ("price 5", "expected a test after the field"),
        ("5", "expected a comparison"),
        ("5 in [5]", "expected a comparison"),
        ("5 < 6", "neither side of the comparison is a field"),
        ("price < 5 < 6", "neither side of the comparison is a field"),
        ("color == red", r"red is not a value; put text in quotes \(character 10"),
        ("color == null", "null is not a value; write is null or is not null"),
        ("color == ''", "empty text counts as missing"),
        ("color is 'red'", "expected null or missing after is"),
        ("title contains mug", "expected text in quotes after contains"),
        ("title contains 5", "expected text in quotes after contains"),
        ("color in 'red'", r"expected \["),
        ("color in ['red' 'blue']", "expected ,"),
        ("color in [red]", "expected a number, text in quotes or ]"),
        ("color in ['red'", r"expected , .*character 16"),
        ("color in ['red', 5]", "a list holds numbers or texts, not both"),
        ("color in []", "the list is empty"),
        ("(price < 5", r"expected \) \(character 11"),
        ("price < 5)", "expected and, or, or the end"),
        ("price < 5 color == 'red'", r"expected and, or, or the end \(character 11"),
        ("price = 5", r"write == \(character 7"),
        ("price < 5 && price > 2", r"write and \(character 11"),
        ("price < 5 | price > 2", "write or"),
        ("!price < 5", "write not"),
        ("price < $5", r"this sign has no meaning here \(character 9"),
        ("price < 5€", "this sign has no meaning here"),
        ("price < 5USD", "this is not a number"),
        ("price < 1.2.3", "this is not a number"),
        ("price < 1e999", "this is not a number"),
        ("color == 'red", r"the quote that opens here is not closed \(character 10"),
        ("`heel height == 5", "the quote that opens here is not closed"),
        (r"title == 'a\d'", r"unknown escape; for a backslash write two \(character 12"),
        ("__import__('os')", "expected a test after the field"),
        ("price.real < 5", "this sign has no meaning here"),
        ("(" * 100_000, f"100,000 characters; the limit is {MAX_LENGTH:,}"),
        ("(" * 15_000, f"more than {MAX_NESTING} levels"),
        ("not " * 5_000, f"more than {MAX_NESTING} levels"),
        ("price<5 or " * MAX_TESTS + "price<5", f"more than {MAX_TESTS} tests"),
        ("1<price<" * MAX_TESTS + "1", f"more than {MAX_TESTS} tests"),
        ("1" * 19_999 + "x", "this is not a number"),
        (" " * 19_999 + "$", "character 20,000|character 20000"),
        ("'" + "\\'" * 9_999, "the quote that opens here is not closed"),
    ],
)
def test_mistakes_in_the_text(expression: str, message: str) -> None:
    with pytest.raises(WhereError, match=message) as caught:
        compile_where(expression)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "colour == 'red'",
            r"unknown field 'colour'; did you mean color\? the fields are id, title, ",
        ),
        ("price < 5 and zzz == 1", r"unknown field 'zzz'; the fields are id, .*character 15"),
        ("`a\nb` == 1", "unknown field"),
        ("color < 5", "no value of 'color' is a number; put text in quotes"),
        ("price < 5 or title in [1, 2]", r"no value of 'title' is a number.*character 14"),
        ("price < '5'", "'price' holds numbers; write the number without quotes"),
        ("price contains '5'", "'price' holds numbers"),
        ("price in ['5']", "'price' holds numbers"),
    ],
)
def test_mistakes_against_the_products(expression: str, message: str) -> None:
    where = compile_where(expression)
    with pytest.raises(WhereError, match=message) as caught:
        where.mask(SHOP)
    assert "\n" not in str(caught.value)


def test_a_field_with_no_value_at_all_is_not_an_error() -> None:
    table = Rows([{"id": "1"}, {"id": "2"}], ["id", "size"])
    assert not compile_where("size < 5").mask(table).any()
    assert compile_where("not size < 5").mask(table).all()


def test_deepest_nesting_and_long_chains_work() -> None:
    deep = "(" * MAX_NESTING + "price < 50" + ")" * MAX_NESTING
    assert matching(deep) == "ade"
    assert matching(" or ".join(["price == 5"] * MAX_TESTS)) == "a"
    assert matching(f"price in [{','.join(str(number) for number in range(4_000))}]") == "abd"


# Random expressions, each made together with a plain Python function of a row.

WORDS = ["Red", "red", "dark red", "MUG", "x'y", "7", "-2.5", "7.0"]


def as_number(value: Any) -> float | None:
    if isinstance(value, float):
        return value
    if value and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    return None


def compared(left: Any, sign: str, right: Any) -> bool:
    return {
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[sign]


SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
NUMBERS = st.sampled_from([-2.5, 0.0, 7.0, 7.5])
TEXT_FIELD = st.sampled_from(["size", "label"])


@st.composite
def field_tests(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(
        st.sampled_from(["number", "numbers", "chain", "text", "texts", "contains", "null"])
    )
    if kind in ("number", "numbers", "chain"):
        field = draw(st.sampled_from(["price", "size", "label"]))
        low, high = draw(NUMBERS), draw(NUMBERS)
        if kind == "numbers":
            word = draw(st.sampled_from(["in", "not in"]))
            return (
                f"{field} {word} [{low}, {high}]",
                lambda row: (
                    (value := as_number(row[field])) is not None
                    and (value in (low, high)) == (word == "in")
                ),
            )
        first, second = draw(SIGNS), draw(SIGNS)
        if kind == "number":
            return (
                f"{field}{first}{low}",
                lambda row: (
                    (value := as_number(row[field])) is not None and compared(value, first, low)
                ),
            )
        return (
            f"{low} {first} {field} {second} {high}",
            lambda row: (
                (value := as_number(row[field])) is not None
                and compared(low, first, value)
                and compared(value, second, high)
            ),
        )
    field = draw(TEXT_FIELD)
    if kind == "null":
        negated = draw(st.booleans())
        return f"{field} is {'not ' * negated}null", lambda row: (not row[field]) != negated
    word = draw(st.sampled_from(WORDS))
    quoted = "'" + word.replace("'", "\\'") + "'"
    if kind == "text":
        sign = draw(SIGNS)
        return (
            f"{field} {sign} {quoted}",
            lambda row: bool(row[field]) and compared(row[field].casefold(), sign, word.casefold()),
        )
    negated = draw(st.booleans())
    if kind == "contains":
        return (
            f"{field} {'not ' * negated}contains {quoted}",
            lambda row: bool(row[field]) and (word.casefold() in row[field].casefold()) != negated,
        )
    return (
        f"{field} {'not ' * negated}in [{quoted}, 'mug']",
        lambda row: (
            bool(row[field]) and (row[field].casefold() in (word.casefold(), "mug")) != negated
        ),
    )


def joined(parts: st.SearchStrategy[tuple[str, Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    both = st.tuples(parts, parts)
    return st.one_of(
        both.map(lambda p: (f"({p[0][0]}) and ({p[1][0]})", lambda r: p[0][1](r) and p[1][1](r))),
        both.map(lambda p: (f"({p[0][0]}) or ({p[1][0]})", lambda r: p[0][1](r) or p[1][1](r))),
        parts.map(lambda p: (f"not ({p[0]})", lambda r: not p[1](r))),
    )


ROWS = st.fixed_dictionaries(
    {
        "price": st.one_of(st.none(), NUMBERS),
        "size": st.one_of(st.none(), st.just(""), st.sampled_from(WORDS)),
        "label": st.one_of(st.none(), st.sampled_from(WORDS)),
    }
)
# At least one number in each text field: otherwise a number test is an error.
FIRST = {"price": None, "size": "7", "label": "-2.5"}


@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, max_size=12), st.recursive(field_tests(), joined, max_leaves=6))
def test_masks_agree_with_a_plain_loop(
    rows: list[dict[str, Any]], expression: tuple[str, Any]
) -> None:
    rows = [FIRST, *rows]
    text, holds = expression
    mask = compile_where(text).mask(Rows(rows, ["price", "size", "label"]))
    assert mask.tolist() == [holds(row) for row in rows]


ALPHABET = st.sampled_from(
    [*"()[],<>=!'\"`\\ \n-.5aé$", "and ", "not ", "in ", "price", " is null"]
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(ALPHABET, max_size=15).map("".join)))
def test_any_text_gives_a_mask_or_a_where_error(text: str) -> None:
    try:
        mask = compile_where(text).mask(SHOP)
    except WhereError as error:
        message = str(error)
        assert message.isprintable()
    else:
        assert mask.shape == (5,)
