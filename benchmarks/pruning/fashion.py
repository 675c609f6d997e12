"""MML-TP on real titles: 35,317 Myntra products, where brand words are the noise.

The catalog says nothing of brands, but its titles do: they begin with the brand, which ends
where the audience ("Men", "Girls", …) is named. Visual are the words of colours and article
types, and those that many brands share ("printed", "checks").

All arms start from one model that was fine-tuned plainly on the first half of the training
titles, in the place of a public model that knows the field; they learn from the second half.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.datasets import FASHION_GALLERY
from benchmarks.pruning.arms import train_arm, visual_only
from benchmarks.pruning.runs import Result
from indexing.catalog import read_catalog
from indexing.catalog.product import Product
from indexing.cleaning import clean
from indexing.models.clip import ClipEncoder, load_folder
from indexing.titles import position
from training.builtin import TEST_SEED, is_test_title
from training.clip import train_clip
from training.config import TrainConfig
from training.data import Pairs, read_pairs
from training.images import LockedImages, last_projection
from training.seed_model import make_seed_model, start_projection
from training.validation import first_hit_ranks, recall_at

HALF_SEED = 2
BRANDS = 12  # a word that so many brands use is no brand's own
START = TrainConfig(
    epochs=5, batch_size=512, learning_rate=1e-3, weight_decay=0.05, lock_image=True
)
CONFIG = START.model_copy(update={"epochs": 6, "learning_rate": 5e-4})
SECOND = CONFIG.model_copy(update={"epochs": 3, "learning_rate": 2.5e-4})
MASK_STEPS = 160
_AUDIENCE = {
    *("men", "women", "boys", "girls", "kids", "unisex", "mens", "womens", "boy", "girl", "man"),
    *("woman", "kid", "infant", "infants", "baby", "s"),
}
_WORD = re.compile(r"\w+")
VISUAL_KINDS = ("colour", "type", "shared")


@dataclass(frozen=True)
class Lexicon:
    """What kind of word each word of the catalog's titles is."""

    colours: frozenset[str]
    types: frozenset[str]
    shared: frozenset[str]

    @classmethod
    def of(cls, products: Iterable[Product]) -> Lexicon:
        """Reads `color` and `article_type`, and which brands use which words."""
        colours: set[str] = set()
        types: set[str] = set()
        users: dict[str, set[str]] = defaultdict(set)
        for product in products:
            colours.update(_words(product.attributes.get("color", "")))
            for word in _words(product.attributes.get("article_type", "")):
                types.update({word, word.removesuffix("s")})
            words = _words(product.title)
            end = _brand_end(words)
            for word in words[end:]:
                users[word].add(" ".join(words[:end]))
        shared = {
            word
            for word, brands in users.items()
            if len(brands) >= BRANDS and len(word) > 2 and word.isalpha()
        }
        return cls(frozenset(colours), frozenset(types), frozenset(shared - _AUDIENCE))

    def kinds(self, words: Sequence[str]) -> list[str]:
        """audience, brand, colour, type, shared or rare, of each word of one title."""
        lowered = [word.casefold() for word in words]
        end = _brand_end(lowered)
        return [self._kind(word, place < end) for place, word in enumerate(lowered)]

    def visible(self, word: str) -> bool:
        """Whether pictures show a word, wherever it stands in a title."""
        return any(self._kind(part, False) in VISUAL_KINDS for part in _words(word))

    def _kind(self, word: str, in_brand: bool) -> str:
        if word in _AUDIENCE:
            return "audience"
        if in_brand:
            return "brand"
        for kind, words in (("colour", self.colours), ("type", self.types)):
            if word in words:
                return kind
        return "shared" if word in self.shared else "rare"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _brand_end(words: Sequence[str]) -> int:
    """How many words the brand takes: all before the audience, or one where none is named."""
    audience = _AUDIENCE - {"s"}  # what is left of "men's", and the start of "s.Oliver"
    found = next((place for place, word in enumerate(words[:6]) if word in audience), 1)
    return max(1, found)


def prepare(data: Path, work: Path) -> None:
    """Writes the start of all arms to `work`, and the features of all pictures."""
    products = list(read_catalog(data / "fashion/catalog.csv"))
    first = training_pairs(products, second_half=False)
    seed = work / "seed"
    if not (seed / "model.safetensors").exists():
        make_seed_model(seed)
    encoder = load_folder(seed)
    images = LockedImages(encoder, first.pictures, work / "features")
    torch.manual_seed(0)
    start_projection(last_projection(encoder.model.visual), images.features[:8000])
    images = LockedImages(encoder, first.pictures, work / "features")
    train_clip(encoder, first, images, None, None, None, START)
    for pairs in (
        training_pairs(products, second_half=True),
        held_out_pairs(products),
        *_grocery(data),
    ):
        LockedImages(encoder, pairs.pictures, work / "features")
    # Last: where it is, arms need not prepare anything, nor write features side by side.
    encoder.save(work / "start", card="# The start of the experiment on real titles\n")


def run_arm(arm: str, seed: int, share: float, data: Path, work: Path) -> Result:
    """Fine-tunes and measures one arm; plain values.

    `second standard` and `second calibrated` go on from the model of the arm `standard` of
    their seed.
    """
    torch.set_num_threads(1)
    products = list(read_catalog(data / "fashion/catalog.csv"))
    lexicon = Lexicon.of(products)
    base = arm.removeprefix("second ")
    second = base != arm
    encoder = load_folder(work / f"standard-{seed}" if second else work / "start")
    pairs = training_pairs(products, second_half=True)
    images = LockedImages(encoder, pairs.pictures, work / "features")
    config = (SECOND if second else CONFIG).model_copy(update={"seed": seed})
    train_arm(
        base,
        encoder,
        pairs,
        images,
        config,
        share=share,
        visual=lexicon.visible,
        mask_steps=MASK_STEPS,
    )
    if arm in ("standard", "calibrated"):
        encoder.save(work / f"{arm}-{seed}", card=f"# Arm {arm} of the experiment, seed {seed}\n")
    found = measure(encoder, products, lexicon, data, work, oracle=arm == "oracle")
    if encoder.pruning is not None:
        found["share"] = kept_by_kind(_kept(encoder, pairs.titles[:4000]), lexicon)["all"]
    return {"arm": arm, "seed": seed, **found}


def measure(
    encoder: ClipEncoder,
    products: Sequence[Product],
    lexicon: Lexicon,
    data: Path,
    work: Path,
    *,
    oracle: bool,
) -> Result:
    """Unseen title -> picture, and grocery's phone photo -> iconic picture."""
    test = held_out_pairs(products)
    gallery = _embedded(encoder, test, work)
    _, first = np.unique(test.keys, return_index=True)
    titles = [test.titles[row] for row in first]
    queries = encoder.embed_texts(visual_only(titles, lexicon.visible) if oracle else titles)
    found: Result = {}
    ranks = first_hit_ranks(queries, gallery, test.keys[first], test.keys)
    found |= {f"title R@{k}": recall for k, recall in recall_at(ranks).items()}
    photos, icons = _grocery(data)
    asked, answers = _embedded(encoder, photos, work), _embedded(encoder, icons, work)
    ranks = first_hit_ranks(asked, answers, photos.keys, icons.keys)
    found |= {f"picture R@{k}": recall for k, recall in recall_at(ranks).items()}
    if encoder.pruning is not None:
        found["kept"] = kept_by_kind(_kept(encoder, titles), lexicon)
    return found


def kept_by_kind(
    titles: Iterable[Sequence[tuple[str, bool]]], lexicon: Lexicon
) -> dict[str, float]:
    """The share of words kept: of each kind, of visual ones, of noise and of all.

    Args:
        titles: each word of each title, and whether it is kept.
    """
    kept: dict[str, list[bool]] = {}
    for words in titles:
        spelled = [(word, stays) for word, stays in words if _WORD.fullmatch(word)]
        kinds = lexicon.kinds([word for word, _ in spelled])
        for (_, stays), kind in zip(spelled, kinds, strict=True):
            names = ["all", kind]
            if kind != "audience":
                names.append("visual" if kind in VISUAL_KINDS else "noise")
            for name in names:
                kept.setdefault(name, []).append(stays)
    return {name: float(np.mean(values)) for name, values in sorted(kept.items())}


def _kept(encoder: ClipEncoder, titles: Sequence[str]) -> list[list[tuple[str, bool]]]:
    return [[(word.text, word.kept) for word in words] for words in clean(encoder, titles)]


def training_pairs(products: Iterable[Product], *, second_half: bool) -> Pairs:
    """Pairs of the training titles below or above the middle of their hashes."""
    return read_pairs(
        [
            [
                product
                for product in products
                if not is_test_title(product.title)
                and (position(product.title, HALF_SEED) >= 0.5) == second_half
            ]
        ]
    )


def held_out_pairs(products: Iterable[Product]) -> Pairs:
    """The gallery of `shoplens bench recall MODEL fashion`."""
    held_out = [product for product in products if is_test_title(product.title)]
    held_out.sort(key=lambda product: (position(product.title, TEST_SEED), product.id))
    return read_pairs([held_out[:FASHION_GALLERY]])


def _grocery(data: Path) -> tuple[Pairs, Pairs]:
    """Test photos and iconic pictures of grocery; the product is the key."""
    sides: dict[str, list[tuple[int, Any]]] = {"images/test/": [], "images/iconic": []}
    for number, product in enumerate(read_catalog(data / "grocery/catalog.jsonl")):
        for image in product.images:
            for start, rows in sides.items():
                if image.location.startswith(start):
                    rows.append((number, image))
    photos, icons = (
        Pairs(
            [image for _, image in rows],
            [""] * len(rows),
            np.array([number for number, _ in rows], np.int64),
            [str(number) for number, _ in rows],
        )
        for rows in sides.values()
    )
    return photos, icons


def _embedded(encoder: ClipEncoder, pairs: Pairs, work: Path) -> Any:
    images = LockedImages(encoder, pairs.pictures, work / "features")
    with torch.inference_mode():
        vectors = images.embed(images.features)
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
