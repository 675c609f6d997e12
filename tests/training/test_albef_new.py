"""Word pieces that are the same each time, and untrained models of every size."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from indexing.models.albef.config import AlbefConfig
from training.albef.new import SIZES, learn_word_pieces, new_albef

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def made_up_titles(letters: str, *, words: int = 60, count: int = 40) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(words)]
    return [" ".join(rng.choices(vocabulary, k=6)) for _ in range(count)]


@pytest.mark.parametrize(
    "titles",
    [
        made_up_titles("abcdefghijklmnop"),
        # More characters than are kept, each about as rare as the others.
        made_up_titles("".join(map(chr, range(0x0400, 0x0480))) * 2, words=300)
        + made_up_titles("".join(map(chr, range(0x4E00, 0x5200))), words=1000, count=300),
    ],
    ids=["ties", "characters"],
)
def test_pieces_are_the_same_each_time_and_in_any_order(
    titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own way to learn them gives others each time."""
    first = learn_word_pieces(titles, 2600)
    assert first[:5] == SPECIAL
    assert len(set(first)) == len(first)
    for seed, threads in ((0, "1"), (1, "4")):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        mixed = random.Random(seed).sample(titles, len(titles))
        assert learn_word_pieces([*mixed, titles[0]], 2600) == first


def test_pieces_are_frequent_parts_of_words() -> None:
    titles = ["walking boots", "running boots", "walking shoes", "running shoes", "Sling"]
    pieces = learn_word_pieces(titles, 200)
    assert {"walking", "running", "boots", "shoes", "##ing"} <= set(pieces)
    assert "sling" not in pieces  # seen once
    # The pieces that are merged first: of pairs that are as frequent the one of lower ids.
    small = learn_word_pieces(titles, len(pieces) - 3)
    assert small == pieces[:-3]


def test_no_more_pieces_than_asked_for() -> None:
    titles = made_up_titles("abcdefghijklmnop", words=400, count=300)
    assert len(learn_word_pieces(titles, 150)) == 150


def test_rare_characters_are_left_out() -> None:
    common = [chr(0x4E00 + n) for n in range(1000)]
    titles = [f"{a} {b}" for a, b in pairwise(common)]
    pieces = learn_word_pieces([*titles, "\u9f98"], 8192)
    assert sorted(pieces[5:1005]) == common
    assert "\u9f98" not in pieces


def test_a_model_reads_its_own_titles_without_unknown_words(tmp_path: Path) -> None:
    """Marks that are no letters, and letters that change in lower case, too."""
    titles = ["Weiße Maßbänder 5% & mehr", "Größe: M+L", "Jack & Jones™ T-Shirt", "ÉTÉ 20€ Kaftan"]
    encoder = new_albef(titles * 2, "tiny", tmp_path, seed=0, device="cpu")
    ids = encoder.tokenizer(titles)
    assert not (ids == encoder.tokenizer.unknown_id).any()
    assert encoder.config.vocab_size == encoder.tokenizer.vocab_size
    assert (tmp_path / "vocab.txt").read_text().split("\n")[:5] == SPECIAL


def test_a_new_model_is_the_same_for_the_same_titles_and_seed(tmp_path: Path) -> None:
    titles = made_up_titles("abcdefgh")
    encoder = new_albef(titles, "tiny", tmp_path, seed=3, device="cpu")
    fingerprint = encoder.fingerprint
    again = new_albef(titles[::-1], "tiny", tmp_path, seed=3, device="cpu")
    assert again.fingerprint == fingerprint
    other = new_albef(titles, "tiny", tmp_path, seed=4, device="cpu")
    assert not torch.equal(other.model.vision_proj.weight, encoder.model.vision_proj.weight)
    assert (encoder.dim, encoder.image_size) == (64, 64)


def test_sizes_are_possible() -> None:
    sizes = {name: AlbefConfig(vocab_size=1000, **size) for name, size in SIZES.items()}
    assert list(sizes) == ["tiny", "small", "base"]
    assert sizes["base"] == AlbefConfig(vocab_size=1000)
    assert (sizes["small"].text_layers, sizes["small"].fusion_layer) == (12, 6)
    widths = [size.text_width for size in sizes.values()]
    assert widths == sorted(widths)
    for size in sizes.values():
        assert size.text_layers - size.fusion_layer > 1  # else no cross-attention could prune


def test_pieces_are_of_words_as_the_tokenizer_sees_them(tmp_path: Path) -> None:
    titles = ["Men's T-shirt 3.5 kg", "Men's T-shirt no. 3.5/kg"] * 2
    encoder = new_albef(titles, "tiny", tmp_path, seed=0, device="cpu")
    pieces = [
        [titles[0][piece.start : piece.end] for piece in encoder.tokenizer.pieces(title)]
        for title in titles[:1]
    ]
    assert pieces == [["Men's", "T", "shirt", "3.5", "kg"]]
