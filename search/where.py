"""The filter language over product fields: text to a mask, without `eval`.

    price < 50 and color == 'Red'
    10 <= price < 50 and not (brand in ['Acme', 'Zed'] or title contains 'mug')
    `heel height` is missing or size > 41.5

Fields      as the catalog names them; names with spaces or other signs in `back quotes`.
            Case does not matter unless two names differ by case alone.
Values      numbers (-1, 2.5, 1e3: 64-bit floats) and text in either quote, where
            \\' \\" \\\\ \\n \\t are escapes. Lists hold one kind: [1, 2] or ['S', 'M'].
Tests       == != < <= > >= (also chained), in, not in, contains, not contains,
            is null, is not null (`missing` is another word for `null`).
Logic       not binds tighter than and, and tighter than or; parentheses.

Text is compared without regard to case: 'red' equals 'Red'; < and > order it alphabetically.
A number against a field stored as text compares with the values that are plain numbers; the
others count as missing. When not one value is a number that is an error, as is text against
a field of numbers.
A test of a missing (or empty) value is false, also !=, not in and not contains. `not` is plain
negation, so `not (color == 'Red')` holds where the color is missing and `color != 'Red'`
does not.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexing.errors import WhereError
from search.where_tokens import Token, error_at, number_in, tokenize

MAX_LENGTH = 20_000  # characters
MAX_NESTING = 50  # parentheses and `not`
MAX_TESTS = 200  # each one may look at every product

Mask = NDArray[np.bool_]


class Table(Protocol):
    """What a filter needs of the products: named columns of one length.

    A column is float64 with NaN for missing, or objects: str, or None for missing.
    """

    def __len__(self) -> int: ...
    def names(self) -> Sequence[str]: ...
    def column(self, name: str) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Where:
    """A compiled filter; it can be applied to any table, from any thread."""

    text: str
    _root: _Node

    def mask(self, products: Table) -> Mask:
        """Which products match: bool [n], in the table's order.

        Raises WhereError for an unknown field and for a value of the wrong kind.
        """
        return self._root.mask(products)


def compile_where(text: str) -> Where:
    """Parse a filter; raises WhereError with the place of the first mistake."""
    if len(text) > MAX_LENGTH:
        raise WhereError(
            f"where: the filter has {len(text):,} characters; the limit is {MAX_LENGTH:,}"
        )
    return Where(text, _Parser(text).parse())


# What an expression is made of


class _Node(Protocol):
    def mask(self, products: Table) -> Mask: ...


@dataclass(frozen=True)
class _Field:
    name: str
    at: int
    source: str

    def column(self, products: Table) -> NDArray[Any]:
        names = products.names()
        if self.name in names:
            return products.column(self.name)
        alike = [name for name in names if name.casefold() == self.name.casefold()]
        if len(alike) == 1:
            return products.column(alike[0])
        near = alike or difflib.get_close_matches(self.name, names, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        listed = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
        raise self.error(f"unknown field {self.name!r}; {hint}the fields are {listed}")

    def error(self, problem: str) -> WhereError:
        return error_at(problem, self.source, self.at)


@dataclass(frozen=True)
class _NumberTest:
    """A field against numbers; `judge` takes float64 [n] and returns bool [n]."""

    field: _Field
    judge: Callable[[NDArray[np.float64]], Mask]

    def mask(self, products: Table) -> Mask:
        column = self.field.column(products)
        numbers = column if column.dtype.kind == "f" else self._parsed(column)
        verdicts: Mask = self.judge(numbers) & ~np.isnan(numbers)
        return verdicts

    def _parsed(self, column: NDArray[Any]) -> NDArray[np.float64]:
        values = column.tolist()
        parsed = {value: number_in(value) for value in set(values)}
        if any(parsed) and all(math.isnan(number) for number in parsed.values()):
            raise self.field.error(
                f"no value of {self.field.name!r} is a number; put text in quotes"
            )
        return np.fromiter(map(parsed.__getitem__, values), np.float64, len(values))


@dataclass(frozen=True)
class _TextTest:
    """A field against text; `judge` takes one case-folded value that is not missing."""

    field: _Field
    judge: Callable[[str], bool]

    def mask(self, products: Table) -> Mask:
        column = self.field.column(products)
        if column.dtype.kind == "f":
            raise self.field.error(
                f"{self.field.name!r} holds numbers; write the number without quotes"
            )
        # Shops repeat their brands and colors: each distinct value is judged once.
        values = column.tolist()
        verdicts = {value: bool(value) and self.judge(value.casefold()) for value in set(values)}
        return np.fromiter(map(verdicts.__getitem__, values), np.bool_, len(values))


@dataclass(frozen=True)
class _Missing:
    field: _Field

    def mask(self, products: Table) -> Mask:
        column = self.field.column(products)
        if column.dtype.kind == "f":
            missing: Mask = np.isnan(column)
            return missing
        return np.fromiter((not value for value in column.tolist()), np.bool_, len(column))


@dataclass(frozen=True)
class _Not:
    part: _Node

    def mask(self, products: Table) -> Mask:
        return ~self.part.mask(products)


@dataclass(frozen=True)
class _Joined:
    """Parts joined by and, or by or."""

    join: np.ufunc
    parts: Sequence[_Node]

    def mask(self, products: Table) -> Mask:
        joined: Mask = functools.reduce(self.join, (part.mask(products) for part in self.parts))
        return joined


# From tokens to a tree, by recursive descent

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = tokenize(source)
        self._next = 0
        self._depth = 0
        self._tests = 0

    def parse(self) -> _Node:
        if self._token.kind == "end":
            raise self._error("the filter is empty; write for example price < 50")
        node = self._any()
        if self._token.kind != "end":
            raise self._error("expected and, or, or the end")
        return node

    def _any(self) -> _Node:
        parts = [self._all()]
        while self._skip("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else _Joined(np.logical_or, parts)

    def _all(self) -> _Node:
        parts = [self._not()]
        while self._skip("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else _Joined(np.logical_and, parts)

    def _not(self) -> _Node:
        if self._depth > MAX_NESTING:
            raise self._error(f"more than {MAX_NESTING} levels of parentheses and not")
        self._depth += 1
        if self._skip("not"):
            node: _Node = _Not(self._not())
        elif self._skip("("):
            node = self._any()
            self._expect(")")
        else:
            node = self._test()
        self._depth -= 1
        return node

    def _test(self) -> _Node:
        left = self._operand()
        if self._token.text in _COMPARE and self._token.kind == "sign":
            return self._comparison(left)
        if left.kind != "field":
            raise self._error("expected a comparison such as == or <")
        field = self._field(left)
        if self._skip("is"):
            missing = _Missing(field)
            negated = self._skip("not")
            if self._token.kind != "field" or self._token.text.lower() not in ("null", "missing"):
                raise self._error("expected null or missing after is")
            self._advance()
            return _Not(missing) if negated else missing
        negated = self._skip("not")
        if self._skip("in"):
            return self._membership(field, negated)
        if self._skip("contains"):
            part = self._advance()
            if part.kind != "string":
                raise self._error("expected text in quotes after contains", part)
            return _contains(field, str(part.value), negated)
        raise self._error("expected a test after the field: == < in contains is …")

    def _comparison(self, left: Token) -> _Node:
        """One comparison or a chain of them: `10 <= price < 50` is two, joined by and."""
        parts: list[_Node] = []
        while self._token.kind == "sign" and self._token.text in _COMPARE:
            sign = self._advance().text
            right = self._operand()
            if left.kind == "field" and right.kind == "field":
                null = right.text.lower() in ("null", "missing", "none")
                hint = "write is null or is not null" if null else "put text in quotes"
                raise self._error(f"{right.text} is not a value; {hint}", right)
            if left.kind != "field" and right.kind != "field":
                raise self._error("neither side of the comparison is a field", left)
            if left.kind == "field":
                parts.append(_compare(self._field(left), sign, right.value))
            else:
                parts.append(_compare(self._field(right), _MIRRORED[sign], left.value))
            left = right
        return parts[0] if len(parts) == 1 else _Joined(np.logical_and, parts)

    def _membership(self, field: _Field, negated: bool) -> _Node:
        self._expect("[")
        values: list[Token] = []
        while not self._skip("]"):
            if values:
                self._expect(",")
                if self._skip("]"):
                    break
            values.append(self._advance())
            if values[-1].kind not in ("number", "string"):
                raise self._error("expected a number, text in quotes or ]", values[-1])
            if values[-1].kind != values[0].kind:
                raise self._error("a list holds numbers or texts, not both", values[-1])
        if not values:
            raise self._error("the list is empty")
        return _member(field, [token.value for token in values], negated)

    def _operand(self) -> Token:
        token = self._advance()
        if token.kind not in ("number", "string", "field"):
            raise self._error("expected a field or a value", token)
        if token.value == "":
            raise self._error("empty text counts as missing; write is null or is not null", token)
        return token

    def _field(self, token: Token) -> _Field:
        """The field of one more test."""
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise self._error(
                f"more than {MAX_TESTS} tests; many values fit in one in [...]", token
            )
        return _Field(str(token.value), token.at, self._source)

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._next += 1
        return token

    def _skip(self, text: str) -> bool:
        found = self._token.kind in ("keyword", "sign") and self._token.text == text
        if found:
            self._next += 1
        return found

    def _expect(self, text: str) -> None:
        if not self._skip(text):
            raise self._error(f"expected {text}")

    def _error(self, problem: str, token: Token | None = None) -> WhereError:
        return error_at(problem, self._source, (token or self._token).at)


def _compare(field: _Field, sign: str, value: float | str) -> _Node:
    compare = _COMPARE[sign]
    if isinstance(value, str):
        folded = value.casefold()
        return _TextTest(field, lambda text: bool(compare(text, folded)))
    return _NumberTest(field, lambda numbers: compare(numbers, value))


def _member(field: _Field, values: list[float | str], negated: bool) -> _Node:
    if isinstance(values[0], str):
        wanted = {str(value).casefold() for value in values}
        return _TextTest(field, lambda text: (text in wanted) != negated)
    return _NumberTest(field, lambda numbers: np.isin(numbers, values, invert=negated))


def _contains(field: _Field, part: str, negated: bool) -> _Node:
    folded = part.casefold()
    return _TextTest(field, lambda text: (folded in text) != negated)
