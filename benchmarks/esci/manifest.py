"""What a split is: its manifest, and the folder opened and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexing.durable import sha256_of
from indexing.errors import BenchmarkError
from indexing.manifest import Count, FileRecord
from indexing.messages import printable, shown

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PRODUCTS = "products.parquet"
IMAGES = "images.parquet"
TRAIN = "train.parquet"
VALIDATION = "validation.parquet"
TEST_PAIRS = "test_pairs.parquet"
QUERIES = "queries.parquet"
SCAN = "scan.parquet"
FILES = (PRODUCTS, IMAGES, TRAIN, VALIDATION, TEST_PAIRS, QUERIES, SCAN)

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
Label = Literal["E", "S", "C", "I"]
LABELS: tuple[Label, ...] = ("E", "S", "C", "I")  # exact, substitute, complement, irrelevant
TrainImages = Literal["main", "aux", "all", "main+1"]
PairMode = Literal["all_pairs", "aux_to_main"]

# MML-TP (Hu et al. 2024).
PAPER = {
    "test products": 80_000,
    "test pairs": 186_000,
    "train products": 630_000,
    "train pairs": 858_000,
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(_Strict):
    """What a user can choose; the counts and the files follow from it and from the inputs."""

    locale: str = "us"
    seed: int = 0
    min_side: Annotated[int, Field(ge=1)] = 100  # pixels of the shorter side
    max_shared: Annotated[int, Field(ge=1)] = 50  # a picture of more products is a placeholder
    # None: as many as in the paper, or the paper's share where that is less.
    test_products: Annotated[int, Field(ge=1)] | None = None
    validation_products: Annotated[int, Field(ge=0)] | None = None
    train_images: TrainImages = "aux"
    pair_mode: PairMode = "all_pairs"
    small: bool = False
    allow_urls: bool = False


class ProductCounts(_Strict):
    """rows = other_locale + untitled + repeated + usable."""

    rows: Count
    other_locale: Count
    untitled: Count  # or without an id
    repeated: Count  # further rows of an id
    usable: Count


class PictureCounts(_Strict):
    """Rows of the sources, then distinct pictures (product, path).

    rows = unreadable + other_products + without_picture + repeated + named, and
    named = missing + broken + too_small + placeholders + shared + same_as_main +
    same_as_other + beyond_ten + of_dropped_products + kept.
    """

    rows: Count
    unreadable: Count
    other_products: Count
    without_picture: Count
    repeated: Count
    named: Count
    missing: Count = 0
    broken: Count = 0
    too_small: Count = 0
    placeholders: Count = 0  # on the list
    shared: Count = 0  # of more products than Options.max_shared
    same_as_main: Count = 0
    same_as_other: Count = 0
    beyond_ten: Count = 0
    of_dropped_products: Count = 0
    kept: Count = 0
    missing_reasons: dict[str, Count] = {}  # the most frequent
    broken_reasons: dict[str, Count] = {}


class GroupCounts(_Strict):
    """products + too_few_pictures = ProductCounts.usable."""

    too_few_pictures: Count  # products without two distinct pictures
    products: Count
    promoted: Count  # products whose main picture was no main one in the sources
    groups: Count
    largest: Count  # products of the largest group


class PartCounts(_Strict):
    products: Count
    groups: Count
    pictures: Count
    pairs: Count  # picture-title pairs; of the test part, picture-picture pairs


class QueryCounts(_Strict):
    """Judgments of the test split. rows = other + unusable + judgments of test queries.

    rows counts the whole examples file, `other` what is of another locale or split, or
    not of the small version where that was asked for.
    """

    rows: Count
    other: Count
    unusable: Count  # without a query, a product or one of the four labels
    test_queries: Count
    also_in_train: Count  # queries whose text is one of the train split's too: left out
    without_exact: Count  # queries without an exact product among the test products: left out
    queries: Count
    judgments: Count
    labels: dict[Label, Count]


class Input(_Strict):
    """A file that was read."""

    role: str  # examples, products, facts, placeholders or images:KIND
    name: str
    sha256: str
    bytes: Count


class Counts(_Strict):
    products: ProductCounts
    pictures: PictureCounts
    groups: GroupCounts
    parts: dict[Part, PartCounts]
    queries: QueryCounts


class Manifest(_Strict):
    """What a split was made of and how, and what its files must hash to."""

    format: Literal["shoplens-esci-split"] = "shoplens-esci-split"
    format_version: int = FORMAT_VERSION
    options: Options
    images_root: str  # where paths begin, relative to the split's folder
    inputs: list[Input]
    counts: Counts
    paper: dict[str, int] = PAPER
    licences: dict[str, str]
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Split:
    """A split whose files were checked."""

    folder: Path
    manifest: Manifest

    def table(self, name: str, columns: list[str] | None = None) -> Any:
        """One of FILES as a pyarrow table."""
        return pq.read_table(self.folder / name, columns=columns)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a split. Raises BenchmarkError where there is none of this format."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BenchmarkError(
            f"{shown(path)} cannot be read ({why}): make the split with `shoplens bench esci-split`"
        ) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise BenchmarkError(
            f"{shown(path)} is no manifest of an ESCI split: {printable(field)}: {first['msg']}"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise BenchmarkError(
            f"{shown(path)} has format version {manifest.format_version}, this program reads "
            f"{FORMAT_VERSION}: make the split again"
        )
    return manifest


def read_split(folder: Path) -> Split:
    """Open a split after checking every file of it against the manifest's SHA-256.

    Raises BenchmarkError where there is no split, a file is missing or has changed.
    """
    manifest = read_manifest(folder)
    for name in FILES:
        path = folder / name
        if name not in manifest.files:
            raise BenchmarkError(f"{shown(folder / MANIFEST)} does not name {name}: make it again")
        try:
            found = sha256_of(path)
        except OSError as error:
            raise BenchmarkError(
                f"{shown(path)} cannot be read ({error.strerror}): make the split again"
            ) from error
        if found != manifest.files[name].sha256:
            raise BenchmarkError(
                f"{shown(path)} is not the file that the manifest names (its SHA-256 differs): "
                "make the split again"
            )
    return Split(folder, manifest)
