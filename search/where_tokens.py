"""The words of the filter language: text to tokens, and errors that show their place."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from indexing.errors import WhereError

# No part of a pattern can match in two ways, so time is linear in the text.
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<number>{_NUMBER})
    | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign>==|!=|<=|>=|[<>()\[\],])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_PLAIN_NUMBER = re.compile(rf"\s*{_NUMBER}\s*")
_KEYWORDS = frozenset({"and", "or", "not", "in", "contains", "is"})
_FOREIGN = {"=": "==", "&": "and", "|": "or", "!": "not"}  # other languages' signs
_ESCAPES = {"n": "\n", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Token:
    kind: str  # number, string, field, keyword, sign or end
    text: str  # as written; keywords in lower case
    value: float | str  # of a number or string; the name of a field
    at: int  # offset in the text, from 0


def tokenize(source: str) -> list[Token]:
    """All tokens of a filter, the last of kind `end`; raises WhereError."""
    tokens: list[Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        match = _TOKEN.match(source, position)
        if match is None:
            raise _foreign_sign(source, position)
        kind = str(match.lastgroup)
        tokens.append(_token(source, kind, match[kind], match.start(kind)))
        position = match.end()
    return tokens


def number_in(value: str | None) -> float:
    """A text value as a number when it is plainly one, else NaN."""
    number = float(value) if value and _PLAIN_NUMBER.fullmatch(value) else math.nan
    return number if math.isfinite(number) else math.nan


def error_at(problem: str, source: str, at: int) -> WhereError:
    """An error of one line: the problem, its position from 1, and a caret in the text."""
    start, stop = max(0, at - 30), at + 30
    before = ("…" if start else "") + source[start:at]
    after = source[at:stop] + ("…" if stop < len(source) else "")
    message = f"where: {problem} (character {at + 1}, at the ^: {before}^{after})"
    return WhereError("".join(sign if sign.isprintable() else " " for sign in message))


def _token(source: str, kind: str, text: str, at: int) -> Token:
    if kind == "number":
        after = source[at + len(text) : at + len(text) + 1]
        if after.isalnum() or after in ("_", ".") or not math.isfinite(float(text)):
            raise error_at("this is not a number; put text in quotes", source, at)
        return Token(kind, text, float(text), at)
    if kind == "string":
        return Token(kind, text, _unescaped(source, text, at), at)
    if kind == "quoted":
        return Token("field", text, text[1:-1].replace("``", "`"), at)
    if kind == "word" and text.lower() in _KEYWORDS:
        return Token("keyword", text.lower(), "", at)
    if kind == "word":
        return Token("field", text, text, at)
    return Token(kind, text, "", at)


def _unescaped(source: str, text: str, at: int) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            place = at + 1 + match.start()
            raise error_at("unknown escape; for a backslash write two", source, place)
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", replace, text[1:-1], flags=re.DOTALL)


def _foreign_sign(source: str, position: int) -> WhereError:
    at = len(source) - len(source[position:].lstrip())
    sign = source[at]
    if sign in "'\"`":
        return error_at("the quote that opens here is not closed", source, at)
    problem = f"write {_FOREIGN[sign]}" if sign in _FOREIGN else "this sign has no meaning here"
    return error_at(problem, source, at)
