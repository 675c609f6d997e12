"""Drawn products: what titles say against what was drawn, and a tokenizer of whole words."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.pruning import toy_data
from benchmarks.pruning.toy_data import (
    CONTEXT,
    KIND_OF,
    NOISE,
    SIZE,
    VISUAL,
    ToyProducts,
    draw_products,
    save_tokenizer,
    visual_words,
)
from indexing.models.tokenizers import FolderTokenizer
from indexing.rendering import Thing, draw_thing

COUNT, SEED = 300, 5
KINDS = ("mug", "bottle", "t-shirt", "dress", "chair", "lamp")
OTHER_KINDS = ("shoe", "bag", "box", "ball", "hat", "clock")
NAMES = {
    **dict(zip(KINDS, ("cup", "flask", "tee", "gown", "seat", "light"), strict=True)),
    **dict(zip(OTHER_KINDS, ("sneaker", "tote", "crate", "sphere", "cap", "timer"), strict=True)),
}
PATTERN_NAMES = {"dotted": "polka", "checkered": "plaid", "plain": "solid"}


@pytest.fixture(scope="module")
def drawn() -> ToyProducts:
    return draw_products(COUNT, SEED, views=1)


@pytest.fixture(scope="module")
def captioned() -> ToyProducts:
    return draw_products(40, SEED, views=1, captions=True)


def things(count: int) -> list[Thing]:
    """What `draw_products` draws with this seed: first of all the things."""
    rng = random.Random(SEED)
    return [draw_thing(rng) for _ in range(count)]


def must_say(thing: Thing) -> set[str]:
    """What a whole description says but for name and pattern, which have two words each."""
    said = {thing.colour, thing.accent}
    if thing.width < 0.94:
        said.add("narrow")
    elif thing.width >= 1.04:
        said.add("wide")
    if thing.pattern != "plain":
        said.add(thing.second)
        if thing.period < 0.085:
            said.add("fine")
        elif thing.period >= 0.105:
            said.add("bold")
    return said


def names(thing: Thing) -> set[str]:
    return {thing.kind, NAMES[thing.kind]}


def patterns(thing: Thing) -> set[str]:
    return {thing.pattern, PATTERN_NAMES.get(thing.pattern, thing.pattern)}


def kind_counts(title: str) -> dict[str, int]:
    kinds = [KIND_OF[word] for word in title.split()]
    return {kind: kinds.count(kind) for kind in KIND_OF.values()}


def test_each_word_is_of_one_kind() -> None:
    words = list(chain(*VISUAL.values(), *NOISE.values()))
    assert len(words) == len(set(words)) == len(KIND_OF)
    for kind, own in {**VISUAL, **NOISE}.items():
        assert {KIND_OF[word] for word in own} == {kind}
    assert all(len(word.split()) == 1 for word in words)


def test_visual_words_are_those_of_the_visual_kinds() -> None:
    title = "brand7 red dishwasher safe striped gold narrow model3 nowhere"
    assert visual_words(title) == [False, True, False, False, True, True, True, False, False]


def test_titles_say_what_was_drawn_and_what_no_picture_shows(drawn: ToyProducts) -> None:
    for thing, title in zip(things(COUNT), drawn.titles, strict=True):
        words, counts = title.split(), kind_counts(title)
        seen = [word for word in words if KIND_OF[word] in VISUAL]
        assert len(seen) == len(set(seen))
        assert set(seen) <= must_say(thing) | names(thing) | patterns(thing)
        assert len(names(thing).intersection(seen)) == 1  # a title always has its name
        assert KIND_OF[words[0]] == "brand"
        assert (counts["brand"], counts["series"], counts["model"]) == (1, 1, 2)
        assert 4 + 2 <= counts["claim"] <= 4 * 4 + 3  # four claims and a pack


def test_a_tenth_of_what_can_be_seen_is_left_out_of_titles(drawn: ToyProducts) -> None:
    pairs = list(zip(things(COUNT), drawn.titles, strict=True))
    said = [word in title.split() for thing, title in pairs for word in must_say(thing)]
    sigma = (0.9 * 0.1 / len(said)) ** 0.5
    assert abs(np.mean(said) - 0.9) < 4 * sigma


def test_clean_titles_are_whole_and_visual(drawn: ToyProducts) -> None:
    for thing, title in zip(things(COUNT), drawn.clean, strict=True):
        words = set(title.split())
        assert all(visual_words(title))
        assert must_say(thing) <= words
        assert len(words & names(thing)) == 1
        assert title.split()[-1] in names(thing)
        assert len(words & patterns(thing)) in ((1,) if thing.pattern != "plain" else (0, 1))
        assert words <= must_say(thing) | names(thing) | patterns(thing)


def test_captions_are_an_opening_and_visual_words(captioned: ToyProducts) -> None:
    openings = ["a photo of", "the", "a", "this is a", "picture of", "one"]
    for thing, caption in zip(things(40), captioned.titles, strict=True):
        opening = max((o for o in openings if caption.startswith(f"{o} ")), key=len)
        words = caption.removeprefix(f"{opening} ").split()
        assert set(words) <= must_say(thing) | names(thing) | patterns(thing)
        assert words[-1] in names(thing)


def test_products_depend_on_the_seed_alone() -> None:
    one, again, other = (draw_products(4, seed, views=2) for seed in (7, 7, 8))
    assert (one.titles, one.clean) == (again.titles, again.clean)
    np.testing.assert_array_equal(one.pictures, again.pictures)
    assert one.titles != other.titles
    assert (one.pictures != other.pictures).any()
    assert one.pictures.shape == (4, 2, SIZE, SIZE, 3)


def test_the_first_view_is_on_white(captioned: ToyProducts) -> None:
    further = draw_products(20, SEED, views=2).pictures[:, 1]
    assert (captioned.pictures[:, 0, 0] == 255).all()  # the topmost row of pixels
    assert not (further[:, 0] == 255).all(axis=(1, 2)).any()


def test_a_word_is_a_token_and_the_end_has_the_highest_id(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == size
    ids = tokenizer.get_vocab()
    assert (ids["[PAD]"], ids["[START]"], ids["[END]"]) == (0, size - 2, size - 1)
    products = [draw_products(20, SEED, views=1, captions=captions) for captions in (False, True)]
    for title in chain(KIND_OF, *(part.titles for part in products)):
        assert tokenizer.encode(title).tokens == ["[START]", *title.split(), "[END]"]
    assert tokenizer.encode("red unheard").tokens == ["[START]", "red", "[UNK]", "[END]"]


def test_the_longest_title_fits_the_context(tmp_path: Path, drawn: ToyProducts) -> None:
    claims = sorted(len(claim) for claim in toy_data._CLAIMS)[-4:]
    packs = max(len(pack) for pack in toy_data._PACKS)
    # Brand, series and two models; both colours, accent, width, grain, pattern and name.
    assert 1 + 1 + 2 + 7 + sum(claims) + packs + 2 <= CONTEXT
    save_tokenizer(tmp_path / "tokenizer.json")
    tokens = FolderTokenizer(tmp_path / "tokenizer.json", CONTEXT)(drawn.titles)
    lengths = [len(title.split()) for title in drawn.titles]
    assert tokens.argmax(1).tolist() == [length + 1 for length in lengths]
