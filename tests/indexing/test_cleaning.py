"""Words of cleaned titles: against the tower's own masks, with pieces counted another way."""

from __future__ import annotations

import copy
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from indexing.cleaning import Word, clean, cleaned, kept_share
from indexing.errors import ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.pruned_text import PrunedText
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.models.tokenizers import FolderTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TITLES = [
    "Zurn Z6000-WS1 AquaVantage chrome toilet flush-valve, 1.6 gpf (Pack of 2)",
    "MOTHER Earth Women Aug Bagru Red Kurtas",
    "crème brûlée T-Shirt 350ml",
    "mug",
    "",
    "unbelievably waterproof sunglasses & Dr. Scholl's insoles",
]


@pytest.fixture(scope="module")
def builtin() -> ClipEncoder:
    found = load_encoder("builtin", device="cpu")
    assert isinstance(found, ClipEncoder)
    return found


@pytest.fixture(scope="module")
def clip_tokens() -> ClipEncoder:
    """A small tower over CLIP's own tokens."""
    import open_clip

    torch.manual_seed(0)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 2},
    }  # fmt: skip
    model = create_model(model_cfg)
    with torch.no_grad():
        model.token_embedding.weight.normal_()
        model.transformer.resblocks[0].attn.in_proj_weight.mul_(10)
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": 8}}
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=40)
    return ClipEncoder("small", model, tokenizer, config)


def with_pruning(encoder: ClipEncoder, **recipe: Any) -> ClipEncoder:
    found = copy.copy(encoder)
    changes = recipe.pop("changes", {})
    config = calibrate(encoder, TITLES, **{"share": 0.45, **recipe})
    found.pruning = TokenPruning(config.model_copy(update=changes))
    return found


def pieces_of_builtin(encoder: ClipEncoder, title: str) -> list[tuple[str, int]]:
    """Words without capitals and accents, and their numbers of pieces: ## goes on with a word."""
    tokenizer: Any = encoder.tokenizer
    words: list[tuple[str, int]] = []
    for token in tokenizer._tokenizer.encode(title).tokens:
        if token.startswith("##"):
            words[-1] = (words[-1][0] + token[2:], words[-1][1] + 1)
        elif token not in ("[CLS]", "[SEP]", "[PAD]"):
            words.append((token, 1))
    return words


def bare(text: str) -> str:
    apart = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def pieces_of_clip(encoder: ClipEncoder, title: str) -> list[tuple[str, int]]:
    tokenizer: Any = encoder.tokenizer
    found = tokenizer.pat.findall(title.lower())
    return [(word, len(tokenizer.encode(word))) for word in found]


@pytest.mark.parametrize("name", ["builtin", "clip_tokens"])
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"first_layer": 1},
        {"pruning_layers": 2},
        {"score": "recv", "key": "mean", "pruning_layers": 2},
        {"pruning_layers": 2, "changes": {"cumulative": False, "keys": "none", "multiply": True}},
    ],
    ids=["first", "second", "both", "recv", "as printed"],
)
def test_a_word_is_what_its_longest_lived_piece_is(
    request: pytest.FixtureRequest, name: str, recipe: dict[str, Any]
) -> None:
    encoder = with_pruning(request.getfixturevalue(name), **recipe)
    pieces: Callable[[ClipEncoder, str], list[tuple[str, int]]] = (
        pieces_of_builtin if name == "builtin" else pieces_of_clip
    )
    assert encoder.pruning is not None
    fates, long_words = set(), 0
    for title, words in zip(TITLES, clean(encoder, TITLES), strict=True):
        ids = encoder.tokenizer([title])
        found = PrunedText(encoder.model, encoder.pruning)(ids, hard=True)
        numbers = [layer for layer in range(2) if encoder.pruning.prunes(layer)]
        thresholds = encoder.pruning.thresholds().tolist()
        place, expected = 1, []
        for text, count in pieces(encoder, title):
            best: tuple[float, float, float, float] | None = None
            for piece in range(place, place + count):
                alive = [bool(found.alive[layer][0, piece]) for layer in range(2)]
                dies = math.inf if alive[1] else 2 if alive[0] else 1
                if not encoder.pruning.config.cumulative and alive == [False, True]:
                    dies = math.inf  # came back
                layer = numbers[-1] if dies == math.inf else int(dies) - 1
                score = found.scores[numbers.index(layer)][0, piece].item()
                fate = (dies, score - thresholds[layer], score, thresholds[layer])
                best = fate if best is None else max(best, fate)
            assert best is not None
            expected.append((text, best))
            place += count
            long_words += count > 1
        assert len(words) == len(expected)
        for word, (text, (dies, _, score, threshold)) in zip(words, expected, strict=True):
            assert (bare(word.text) if name == "builtin" else word.text.lower()) == text
            assert (word.dies or math.inf) == dies
            assert (word.score, word.threshold) == pytest.approx(
                (score, threshold), rel=1e-6, abs=1e-5
            )
            fates.add(word.dies)
    assert long_words > 3
    assert {None} < fates


def test_words_stand_as_the_title_has_them(builtin: ClipEncoder, clip_tokens: ClipEncoder) -> None:
    for encoder in (builtin, clip_tokens):
        words = clean(with_pruning(encoder), ["Dr.  Scholl's T-Shirt, \tXL"])[0]
        texts = ["Dr", ".", "Scholl", "'", "s", "T", "-", "Shirt", ",", "XL"]
        if encoder is clip_tokens:
            texts[3:5] = ["'s"]
        assert [word.text for word in words] == texts
        assert [word.text for word in words if word.spaced] == ["Dr", "Scholl", "T", "XL"]


@settings(max_examples=60)
@given(st.text(max_size=60))
@example("\u200bred \x00 mug\u00ad \ufb01ne \u0130stanbul 日本語 e\u0301 😀")
@example("[CLS] red [SEP] mug ##s")
def test_no_character_is_lost(title: str) -> None:
    encoder = _once("builtin")
    title = title.encode("utf-8", "ignore").decode()
    words = clean(encoder, [title])[0]
    shown = "".join(word.text for word in words)
    assert "".join(shown.split()) == "".join(title.split())
    apart = "".join(word.spaced * " " + word.text for word in words)
    assert apart.split() == title.split()


@settings(max_examples=60)
@given(st.text(max_size=60))
@example("<start_of_text> red <end_of_text> mug")
@example("crème &amp; brÃ»lÃ©e \u0130stanbul &nbsp; \x1b[31m")
def test_clip_tokens_of_any_text_make_words(title: str) -> None:
    encoder = _once("clip")
    tokenizer: Any = encoder.tokenizer
    words = clean(encoder, [title])[0]
    shown = "".join(word.text for word in words).lower()
    assert shown == "".join(tokenizer.clean_fn(title).split()).lower()


_ENCODERS: dict[str, ClipEncoder] = {}


@pytest.fixture(autouse=True, scope="module")
def _encoders(builtin: ClipEncoder, clip_tokens: ClipEncoder) -> None:
    """For hypothesis, whose examples share no fixtures of their own."""
    _ENCODERS.update(builtin=with_pruning(builtin), clip=with_pruning(clip_tokens))


def _once(name: str) -> ClipEncoder:
    return _ENCODERS[name]


def test_what_normalisation_removes_shifts_no_neighbour(builtin: ClipEncoder) -> None:
    encoder = with_pruning(builtin)
    plain, odd = clean(encoder, [TITLES[0], "\u200b " + TITLES[0].replace(" ", " \x00 \u200b ")])
    assert [word.text for word in odd if word.dies == 0] == ["\u200b", *["\x00", "\u200b"] * 10]
    read = [word for word in odd if word.dies != 0]
    assert [(word.text, word.dies) for word in read] == [(word.text, word.dies) for word in plain]
    assert [word.score for word in read] == pytest.approx([word.score for word in plain], abs=1e-5)


@pytest.mark.parametrize("name", ["builtin", "clip_tokens"])
def test_words_beyond_the_longest_text_are_shown_as_unread(
    request: pytest.FixtureRequest, name: str
) -> None:
    encoder = with_pruning(request.getfixturevalue(name))
    length = encoder.tokenizer([""]).shape[1]
    words = clean(encoder, ["mug " * 100, "mug"])[0]
    assert [word.text for word in words] == ["mug"] * 100
    assert [word.dies == 0 for word in words] == [False] * (length - 2) + [True] * (102 - length)
    assert all(math.isnan(word.score) == (word.dies == 0) for word in words)


def test_a_word_that_is_cut_in_the_middle_is_judged_by_what_is_read(builtin: ClipEncoder) -> None:
    encoder = with_pruning(builtin)
    for before in range(50, 64):
        word = clean(encoder, ["mug " * before + "unbelievably"])[0][-1]
        assert (word.dies == 0) == (before >= 62)


def test_an_end_of_text_token_in_a_title_ends_what_is_read(clip_tokens: ClipEncoder) -> None:
    words = clean(with_pruning(clip_tokens), ["red <start_of_text> mug <end_of_text> blue mug"])[0]
    assert [word.text for word in words] == [
        "red", "<start_of_text>", "mug", "<end_of_text>", "blue", "mug",
    ]  # fmt: skip
    assert [word.dies == 0 for word in words] == [False, False, False, True, True, True]


def test_cleaned_titles_keep_the_spaces_between_what_stays() -> None:
    def words(*marks: str) -> list[Word]:
        """`-` before a word: dropped; `+` before it: no space before it."""
        return [
            Word(mark.strip("+-"), 0.0, 0.0, 1 if "-" in mark[:2] else None, "+" not in mark[:2])
            for mark in marks
        ]

    assert cleaned(words("T", "+/", "+Shirt", "red")) == "T/Shirt red"
    assert cleaned(words("T", "+-/", "+Shirt", "red")) == "T Shirt red"
    assert cleaned(words("-T", "+-/", "+Shirt", "-red")) == "Shirt"
    assert cleaned(words("-T", "+/", "+-Shirt", "red")) == "/ red"
    assert cleaned(words("-T")) == cleaned([]) == ""
    assert kept_share(words("T", "-red", "-mug", "-hat")) == 0.25
    assert kept_share([]) == 1


def test_where_no_layer_prunes_all_words_are_kept_without_scores(builtin: ClipEncoder) -> None:
    nothing = {"base": (-math.inf,) * 2}
    words = clean(with_pruning(builtin, changes=nothing), TITLES)[1]
    assert [word.kept for word in words] == [True] * 7
    assert all(math.isnan(word.score) and math.isnan(word.threshold) for word in words)


def test_cleaning_says_what_embedding_does(builtin: ClipEncoder) -> None:
    """Where every word is one piece, dropping the words is dropping the tokens at layer 1."""
    encoder = with_pruning(builtin, share=0.1)
    titles = ["red mug women", "blue cotton shirt for men", "black leather watch"]
    ids = encoder.tokenizer(titles)
    assert encoder.pruning is not None
    kept = PrunedText(encoder.model, encoder.pruning)(ids, hard=True).kept()
    words = [word for title in clean(encoder, titles) for word in title]
    assert len(words) == int((ids > 0).sum()) - 6
    assert kept.item() == pytest.approx(kept_share(words))
    assert 0 < kept_share(words) < 1


def folder_tokenizer(path: Path, pre_tokenizer: Any) -> FolderTokenizer:
    """Characters as pieces; with or without a pre-tokenizer."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet(), " "})
    vocabulary = {letter: number for number, letter in enumerate(["[PAD]", *letters])}
    vocabulary |= {"[S]": len(vocabulary), "[E]": len(vocabulary) + 1}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", len(letters) + 1), ("[E]", len(letters) + 2)]
    )
    tokenizer.save(str(path))
    return FolderTokenizer(path, 40)


@pytest.mark.parametrize("kind", ["none", "byte level", "byte level, space before"])
def test_tokenizers_that_count_spaces_to_words_tell_words_apart(tmp_path: Path, kind: str) -> None:
    pre_tokenizer = {
        "none": None,
        "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "byte level, space before": pre_tokenizers.ByteLevel(add_prefix_space=True),
    }[kind]
    tokenizer = folder_tokenizer(tmp_path / "tokenizer.json", pre_tokenizer)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 40, "vocab_size": tokenizer.vocab_size, "width": 16,
                     "heads": 2, "layers": 2},
    }  # fmt: skip
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": 8}}
    encoder = ClipEncoder("x", create_model(model_cfg), tokenizer, config)
    words = clean(with_pruning(encoder), ["Red mug 12 of gold and silver, large"])[0]
    texts = ["Red", "mug", "12", "of", "gold", "and", "silver", "large"]
    if kind != "none":
        texts.insert(7, ",")
    else:
        texts[6] = "silver,"
    assert [word.text for word in words] == texts
    assert all(word.dies != 0 for word in words)


def test_what_cannot_be_cleaned_says_so(builtin: ClipEncoder, clip_tokens: ClipEncoder) -> None:
    with pytest.raises(
        ModelError,
        match=r"^builtin was trained without token pruning: train one with "
        r"`shoplens train clip --preset calibrated`$",
    ):
        clean(builtin, ["red mug"])

    class OtherTokenizer:
        def __call__(self, texts: Sequence[str]) -> torch.Tensor:
            return clip_tokens.tokenizer(texts)

    other = with_pruning(clip_tokens)
    other.tokenizer = OtherTokenizer()
    with pytest.raises(ModelError, match="OtherTokenizer does not tell which pieces make a word"):
        clean(other, ["red mug"])
    reducing = with_pruning(clip_tokens)
    reducing.tokenizer = copy.copy(clip_tokens.tokenizer)
    reducing.tokenizer.reduction_fn = lambda *_: None  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="SimpleTokenizer does not tell"):
        clean(reducing, ["red mug"])


# --- ALBEF

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "acme", "t", "shirt", "##s"]


@pytest.fixture
def albef(tmp_path: Path) -> AlbefEncoder:
    """Two text and two fusion layers; the first layer and a cross-attention prune."""
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(PIECES) + "\n")
    config = AlbefConfig(
        **{"image_size": 16, "patch_size": 8, "vision_width": 8, "vision_layers": 1},
        **{"vision_heads": 2, "vocab_size": len(PIECES), "text_width": 8, "text_layers": 4},
        **{"text_heads": 2, "text_intermediate": 16, "fusion_layer": 2, "max_positions": 16},
        **{"embed_dim": 8, "max_text_length": 8},
    )
    encoder = new_encoder(config, file, seed=0)
    none = -math.inf
    pruning = Pruning(
        score="pre", key="first", base=(0.0, none, none, none, 0.0, none), trained=(False,) * 6,
        temperature=(1.0,) * 6, straight_through=True, cumulative=True, multiply=False,
        keys="same", weight=0.1,
    )  # fmt: skip
    encoder.pruning = TokenPruning(pruning)
    return encoder


def test_of_albef_the_text_encoder_tells_what_is_dropped(albef: AlbefEncoder) -> None:
    model = albef.model
    bert = model.text_encoder.bert
    title = "Acme red T-shirts, red mug mug"
    ids = albef.tokenizer([title])
    with torch.no_grad():
        x = bert.embeddings(ids)
        attention = bert.encoder.layer[0].attention
        query, key, _ = attention.heads(x, x)
    score = (query * key[:, :, :1]).sum(-1).mean(1)[0] / math.sqrt(query.shape[-1])
    places = {"Acme": [1], "red": [2], "T": [3], "shirts": [4, 5]}
    best = {word: max(float(score[place]) for place in own) for word, own in places.items()}
    assert any(value < -1e-3 for value in best.values())
    assert any(value > 1e-3 for value in best.values())
    words = clean(albef, [title])[0]
    assert [word.text for word in words] == [
        "Acme",
        "red",
        "T",
        "-",
        "shirts",
        ",",
        "red",
        "mug",
        "mug",
    ]
    for word in words[:3]:
        assert word.score == pytest.approx(best[word.text], abs=1e-6)
        assert word.kept == (best[word.text] >= 0)
        assert word.dies == (None if word.kept else 1)
    assert [word.dies for word in words if word.text in ("-", ",", "mug")] == [0, 0, 0, 0]
    assert words[4].kept == (best["shirts"] >= 0)


def test_words_that_only_a_picture_can_drop_are_not_told(albef: AlbefEncoder) -> None:
    assert albef.pruning is not None
    base = (-math.inf,) * 4 + (0.0, -math.inf)
    albef.pruning = TokenPruning(albef.pruning.config.model_copy(update={"base": base}))
    with pytest.raises(ModelError, match=r"what they make of a picture.*`shoplens explain`"):
        clean(albef, ["red mug"])
