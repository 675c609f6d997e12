"""Cells as they stand in a file to ids, texts and prices."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

from indexing.catalog.product import MAX_CURRENCY_LENGTH
from indexing.catalog.rows import RowError

# What programs write where there was no value; no merchant's id.
_NO_ID = frozenset({"nan", "NaN", "<NA>", "None", "null", "NULL"})
_EXACT_FLOAT = 2**53  # above it a float cannot tell neighbouring integers apart

_SYMBOLS = {
    "$": "USD",
    "US$": "USD",
    "CA$": "CAD",
    "A$": "AUD",
    "R$": "BRL",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
    "₩": "KRW",
    "₺": "TRY",
    "₽": "RUB",
    "₪": "ILS",
    "zł": "PLN",
    "Rs": "INR",
    "Rs.": "INR",
}
# ISO 4217. Upper case, any three letters are taken for a code; lower case, these alone.
_ISO_4217 = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN "
    "BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL "
    "GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF "
    "KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN "
    "MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD "
    "SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH "
    "UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG"
)
_CODES = frozenset(_ISO_4217.split())
_UNIT = "[A-Za-z]{3}|" + "|".join(re.escape(s) for s in sorted(_SYMBOLS, key=len, reverse=True))
_PRICE = re.compile(rf"({_UNIT})?\s*([0-9.,][0-9.,']*)\s*({_UNIT})?")
_MAX_PRICE_LENGTH = 64
_GROUPS = re.compile(r"(?<=[0-9])[\s'’](?=[0-9]{3}(?![0-9]))")

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_TAG = re.compile(r"<(/?[a-zA-Z][a-zA-Z0-9]*|!)[^<>]*>")
_UNSEEN = frozenset({"script", "style"})


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing (NaN does say something)."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def as_id(value: Any) -> str:
    """The merchant's own string; a number as it would be written, without ".0".

    Raises RowError for what is missing, not a text or number, or not printable.
    """
    if is_empty(value):
        raise RowError("id", value, "the id is missing")
    if isinstance(value, bytes):
        value = _decoded("id", value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise RowError("id", value, "an id must be a text or a number")
    if not isinstance(value, str):
        return _number_id(value)
    text = value.strip()
    if text in _NO_ID:
        raise RowError("id", value, "the id is missing (a placeholder stands in its place)")
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise RowError("id", value, "an id may not hold control characters or broken text")
    return text


def _number_id(value: int | float | Decimal) -> str:
    if isinstance(value, int):
        return _int_text("id", value)
    if not math.isfinite(value):
        raise RowError("id", value, "the id is missing (not a finite number)")
    if isinstance(value, float) and abs(value) > _EXACT_FLOAT:
        raise RowError("id", value, "the id has lost digits as a float; store the column as text")
    return str(int(value)) if value == int(value) else str(value)


def as_text(field: str, value: Any, joiner: str = " ") -> str:
    """A cell as plain text; a list's distinct parts are joined. Raises RowError."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, (list, tuple)) for part in value):
            raise RowError(field, value, f"{field} must be text")
        parts = (as_text(field, part, joiner) for part in value)
        return joiner.join(dict.fromkeys(part for part in parts if part))
    if isinstance(value, bytes):
        value = _decoded(field, value)
    if isinstance(value, str):
        return _clean(field, value)
    if isinstance(value, (bool, dict)):
        raise RowError(field, value, f"{field} must be text")
    return _plain(field, value)


def as_attribute(field: str, value: Any) -> str:
    """Like `as_text`, but a truth value is a text and what is nested says nothing."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, bytes)):
        return ""
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, (dict, list, tuple)) for part in value):
            return ""
        parts = (as_attribute(field, part) for part in value)
        return ", ".join(dict.fromkeys(part for part in parts if part))
    return as_text(field, value)


def as_price(value: Any) -> tuple[float | None, str]:
    """Amount and ISO currency ("" if unknown); an empty cell is (None, "").

    Reads 12.99, "12.99 usd", "$12.99", "12,99 EUR" and "1,299.00 USD": of two kinds of
    separator the last is the decimal one; a lone comma before exactly three digits
    separates thousands, a lone point never does. "$" alone is taken for US dollars.
    Raises RowError for anything else, and for what is negative or not finite.
    """
    if is_empty(value):
        return None, ""
    currency = ""
    if isinstance(value, str):
        amount, currency = _price_text(value)
    elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            amount = float(value)
        except OverflowError:
            amount = math.inf
    else:
        raise RowError("price", value, "a price must be a number")
    if not math.isfinite(amount):
        raise RowError("price", value, "the price is not a finite number")
    if amount < 0:
        raise RowError("price", value, "the price is negative")
    return amount, currency


def _price_text(value: str) -> tuple[float, str]:
    text = value.strip()
    match = None
    if len(text) <= _MAX_PRICE_LENGTH:
        if re.match(r"\D{0,4}[-−]\s*[0-9]", text):
            raise RowError("price", value, "the price is negative")
        match = _PRICE.fullmatch(_GROUPS.sub("'", text))
    amount = _amount(match[2]) if match else None
    currency = _code(match[1] or match[3] or "") if match else ""
    if match is None or amount is None or currency is None or (match[1] and match[3]):
        raise RowError("price", value, "not a price; write it like 12.99 or 12.99 USD")
    return amount, currency


def _code(unit: str) -> str | None:
    """The code of a symbol or of a code in any case; None for words such as "pcs"."""
    if unit in _SYMBOLS:
        return _SYMBOLS[unit]
    return unit if unit.isupper() or not unit else unit.upper() if unit.upper() in _CODES else None


def as_currency(value: Any) -> str:
    """A cell of its own for the currency: codes in upper case, symbols as codes.

    Raises RowError for what is no text, or too long to be a currency.
    """
    text = as_text("currency", value)
    if len(text) > MAX_CURRENCY_LENGTH:
        raise RowError("currency", value, "not a currency; write its code, like USD")
    return _code(text) or text


def _amount(digits: str) -> float | None:
    for point, group in (".,", ",."):
        whole = rf"[0-9]+|[0-9]{{1,3}}(?:[{group}'][0-9]{{3}})+"
        if re.fullmatch(rf"(?:{whole})(?:[{point}][0-9]+)?|[{point}][0-9]+", digits):
            return float(digits.replace(group, "").replace("'", "").replace(point, "."))
    return None


def strip_html(markup: str) -> str:
    """The text of an HTML fragment, in linear time (html.parser's is quadratic)."""
    parts: list[str] = []
    end, unseen = 0, ""
    for tag in _TAG.finditer(markup):
        name = tag[1].lower()
        if not unseen:
            parts.append(markup[end : tag.start()])
        if name in _UNSEEN:
            unseen = unseen or name
        elif name == f"/{unseen}":
            unseen = ""
        end = tag.end()
    if not unseen:
        parts.append(markup[end:])
    return " ".join(html.unescape(" ".join(parts)).split())


def _clean(field: str, text: str) -> str:
    if text.isascii() and text.isprintable():
        return text.strip()
    if _SURROGATE.search(text):
        raise RowError(field, text, f"{field} holds broken text (a lone surrogate)")
    return _CONTROL.sub(" ", text).strip()


def _decoded(field: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(field, value, f"{field} is not UTF-8") from error


def _plain(field: str, value: Any) -> str:
    if isinstance(value, int):
        return _int_text(field, value)
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT_FLOAT else str(value)
    return str(value)


def _int_text(field: str, value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python refuses to write out thousands of digits
        raise RowError(field, "", f"{field} is a number of too many digits") from error
