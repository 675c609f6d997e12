"""CLIP's tokens by our own file are those of open_clip."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from indexing.errors import ModelError
from indexing.models.clip_tokenizer import ClipTokenizer, write_clip_tokenizer
from indexing.models.torchvision_repair import import_torchvision

TEXTS = [
    "",
    " ",
    "a",
    "Red MUG, 350ml!!",
    "Nike Air-Max 90's (pack of 2) it's we'll they've I'm",
    "caf\u00e9 cr\u00e8me \u2013 size XL\u2026 \u20ac12.50",
    "AT&amp;T &amp;amp; &lt;b&gt;",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "sch\u00c3\u00b6n",
    "emoji \U0001f600\U0001f44d\U0001f3fd x",
    "tab\tnew\nline  two",
    "word " * 100,
    "x" * 300,
    "<start_of_text> red <end_of_text>mug",
    "\u0130stanbul \ufb01ne \u2160\u2161 \u00bd 12\u00b2",
    "a\u0301 e\u0300",
    "don't DON'T",
    "___ --- ... ///",
    "\u200bzero\u00a0width",
    "'s 'S",
]
# What counts as a letter is an older Unicode's here and a newer one's there.
LONG_ASSIGNED = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cn", "Cs"])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ClipTokenizer]:
    import_torchvision()
    import open_clip

    theirs = open_clip.get_tokenizer("ViT-B-32")
    path = tmp_path_factory.mktemp("tokens") / "clip.json"
    assert write_clip_tokenizer(theirs, path)
    return theirs, ClipTokenizer(path, theirs.context_length)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_open_clip(both: tuple[Any, ClipTokenizer], text: str) -> None:
    theirs, ours = both
    found = ours.ids([text])
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, theirs([text]).numpy())


@settings(max_examples=300, deadline=None)
@given(text=st.text(LONG_ASSIGNED, max_size=40))
def test_whatever_the_text(both: tuple[Any, ClipTokenizer], text: str) -> None:
    theirs, ours = both
    read = theirs.clean_fn(text)
    assume(all(unicodedata.category(character) != "Cn" for character in read))  # mended to that
    np.testing.assert_array_equal(ours.ids([text]), theirs([text]).numpy())


def test_many_texts_and_another_length(both: tuple[Any, ClipTokenizer], tmp_path: Path) -> None:
    theirs, _ = both
    assert write_clip_tokenizer(theirs, tmp_path / "clip.json")
    short = ClipTokenizer(tmp_path / "clip.json", 8)
    np.testing.assert_array_equal(short.ids(TEXTS), theirs(TEXTS, context_length=8).numpy())
    assert short.ids([]).shape == (0, 8)


def test_other_tokenizers_are_not_written(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    for other in (SimpleTokenizer(clean="whitespace"), SimpleTokenizer(reduction_mask="simple"), 3):
        assert not write_clip_tokenizer(other, tmp_path / "clip.json")
    assert not (tmp_path / "clip.json").exists()
    (tmp_path / "clip.json").write_text("{}")
    with pytest.raises(ModelError, match=r"clip\.json is not a tokenizer's file"):
        ClipTokenizer(tmp_path / "clip.json", 77)
