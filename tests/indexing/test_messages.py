"""Foreign text as messages show it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from indexing.catalog import Reject
from indexing.messages import one_line, printable, reason, shown


def test_a_path_stays_whole_and_recognisable() -> None:
    assert shown(Path("in/Größe 靴 a b.jpg")) == "in/Größe 靴 a b.jpg"
    assert shown(Path(os.fsdecode(b"caf\xe9\n\x1b[31m.png"))) == r"caf\xe9\n\x1b[31m.png"
    assert shown(Path("x" * 4000)) == "x" * 4000


def test_a_text_on_one_line() -> None:
    assert one_line(" Hat,\n\t red\r\nand \x1b[31mblue") == r"Hat, red and \x1b[31mblue"
    assert one_line("\ud800") == r"\ud800"


def test_why_something_failed() -> None:
    assert reason(ValueError("size\nmismatch\n  for a")) == "size mismatch for a"
    assert reason(KeyError()) == "KeyError"
    assert reason(ValueError("x" * 400)) == "x" * 300


def test_a_value_of_any_kind() -> None:
    assert printable(None) == ""
    assert printable([1, None]) == "[1, None]"
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 199 + "…"
    assert printable("\udce9" * 60) == (r"\xe9" * 50)[:199] + "…"


@given(st.text() | st.integers() | st.lists(st.text()))
def test_what_is_shown_is_safe_on_a_terminal(value: Any) -> None:
    cut = printable(value)
    assert len(cut) <= 200
    for text in (cut, one_line(str(value)), reason(ValueError(value))):
        assert text.isprintable()
        text.encode()
    assert Reject(1, None, "title", cut, "why").to_json().isprintable()
