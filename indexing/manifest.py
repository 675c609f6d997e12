"""The manifest: what an index folder holds, and what its files must hash to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from indexing.attributes.record import AttributesRecord
from indexing.attributes.vocabulary import KINDS, AttributeClassifier
from indexing.errors import IndexCorruptError, IndexFolderError, IndexMismatchError
from indexing.index_types import IndexRecord
from indexing.match_record import MatchRecord
from indexing.models.protocol import Encoder, parent_of

SCHEMA_VERSION = 4

MANIFEST = "manifest.json"
STAGING = ".staging"
REJECTS = "rejects.jsonl"
PRODUCTS = "products.parquet"
IMAGES = "images.parquet"
REMOVED = "removed.parquet"
VECTORS = "vectors.npy"
FAISS_INDEX = "index.faiss"
FILES = (PRODUCTS, IMAGES, REMOVED, VECTORS, FAISS_INDEX, REJECTS)  # of each segment
ATTRIBUTES = "attributes.parquet"  # of each segment of an index that has attributes

REBUILD = "rebuild it with `shoplens index CATALOG --out DIR`"

_ASKS = "it may ask this index and not write to it; give the model that made it"
_LOSES = (
    "it was made with --force and may find less, so it may not ask this index; give the model "
    "that made it, or make an index of its own"
)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderRecord(_Strict):
    """The encoder that made the vectors."""

    name: str
    fingerprint: str
    dim: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, encoder: Encoder) -> EncoderRecord:
        return cls(name=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)


class IndexCounts(_Strict):
    """What became of a catalog's rows: rows == products + unchanged + merged + rejected;
    images is the number of vectors."""

    rows: Count
    products: Count
    merged: Count
    rejected: Count
    images: Count
    images_rejected: Count
    fields_rejected: Count = 0
    unchanged: Count = 0  # products of an update that the index held already

    @classmethod
    def none(cls) -> IndexCounts:
        """Of no catalog."""
        return cls(rows=0, products=0, merged=0, rejected=0, images=0, images_rejected=0)


class FileRecord(_Strict):
    sha256: Sha256
    bytes: Count


class SegmentRecord(_Strict):
    """A folder of files that are never written again."""

    name: Annotated[str, StringConstraints(pattern=r"^s[0-9]{6}$")]
    index: IndexRecord
    counts: IndexCounts
    removed: Count  # ids in REMOVED, gone from the segments before this one
    files: dict[str, FileRecord]


class Manifest(_Strict):
    """One version of an index.

    Attributes:
        version: rises by one with each change, a rollback too.
        change: what made this version, for people.
        match: how surely answers are told from none, as of the last build.
        attributes: what filled in the attributes of its products; None where nothing did.
        segments: in the order of their making; a product of a later one replaces the product
            of that id in those before it.
        products, images: what a search can find.
    """

    schema_version: int
    shoplens_version: str
    created: datetime
    version: Annotated[int, Field(ge=1)]
    change: str
    encoder: EncoderRecord
    match: MatchRecord | None
    attributes: AttributesRecord | None = None
    segments: Annotated[tuple[SegmentRecord, ...], Field(min_length=1)]
    products: Count
    images: Count

    @property
    def kind(self) -> str:
        """What its segments are, for people."""
        kinds = dict.fromkeys(str(segment.index) for segment in self.segments)
        count = len(self.segments)
        return ", ".join([*kinds, *([f"{count} segments"] if count > 1 else [])])

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for segment in self.segments for file in segment.files.values())


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of an index folder; raises as `indexing.store.open_index` does."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise IndexFolderError(_why_no_index(folder)) from None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read: {error.strerror}") from error
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in the bytes of the file `path`, checked; raises as `open_index` does."""
    damaged = IndexCorruptError(f"{path} is damaged: {REBUILD}")
    try:
        content = json.loads(data)
        version = content["schema_version"]
        checksum = content.pop("sha256", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not isinstance(version, int):
        raise damaged
    if version != SCHEMA_VERSION:
        newer = "update shoplens, or " if version > SCHEMA_VERSION else ""
        raise IndexMismatchError(
            f"{path.parent} has index schema {version} and this shoplens reads schema "
            f"{SCHEMA_VERSION}: {newer}{REBUILD}"
        )
    # Written again it must give the same bytes, so no change of any kind goes unseen.
    if checksum != _checksum(content) or data != _render(content):
        raise damaged
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError:
        raise damaged from None
    wanted = set(FILES) if manifest.attributes is None else {*FILES, ATTRIBUTES}
    if any(set(segment.files) != wanted for segment in manifest.segments):
        raise damaged
    return manifest


def render_manifest(manifest: Manifest) -> bytes:
    """The file's bytes; they carry their own checksum."""
    return _render(manifest.model_dump(mode="json"))


def check_encoder(folder: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Raise IndexMismatchError where the index of `folder` was made by another encoder."""
    made_by = manifest.encoder
    if made_by.fingerprint == encoder.fingerprint and made_by.dim == encoder.dim:
        return
    parent = parent_of(encoder)
    if parent is not None and parent.fingerprint == made_by.fingerprint:
        raise IndexMismatchError(
            f"{folder} was made by {made_by.name} and {encoder.name} is a model optimised from "
            f"it, whose vectors differ a little: {_ASKS if parent.passed else _LOSES}"
        )
    # Of the same name, it has changed since, and only a rebuild helps.
    other = "" if made_by.name == encoder.name else f"search with --model {made_by.name} or "
    raise IndexMismatchError(
        f"{folder} was made by encoder {made_by.name} (fingerprint {made_by.fingerprint[:12]}), "
        f"this is {encoder.name} (fingerprint {encoder.fingerprint[:12]}): {other}{REBUILD}"
    )


def may_ask(manifest: Manifest, encoder: Encoder) -> bool:
    """Whether queries of this encoder fit the vectors of an index: by the encoder that made
    them, or by one optimised from it that was measured to find as much."""
    made_by, parent = manifest.encoder, parent_of(encoder)
    prints = {encoder.fingerprint}
    if parent is not None and parent.passed:
        prints.add(parent.fingerprint)
    return made_by.fingerprint in prints and made_by.dim == encoder.dim


def check_asker(folder: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Raise IndexMismatchError where the index of `folder` cannot be asked by this encoder."""
    if not may_ask(manifest, encoder):
        check_encoder(folder, manifest, encoder)


def check_classifiers(
    folder: Path, manifest: Manifest, classifiers: Sequence[AttributeClassifier]
) -> None:
    """Raise IndexMismatchError where something else fills in the attributes of the index."""
    record = manifest.attributes
    made_by = {} if record is None else {source.kind: source for source in record.sources}
    given = {classifier.kind: classifier for classifier in classifiers}
    for kind in KINDS:
        source, classifier = made_by.get(kind), given.get(kind)
        if (source and source.fingerprint) == (classifier and classifier.fingerprint):
            continue
        again = f"`shoplens index` with --{kind} FOLDER"
        if source is None:
            raise IndexMismatchError(
                f"{folder} has no {kind}: fill them in by {again}, or update without --{kind}"
            )
        said = "none" if classifier is None else f"{classifier.name}, which is another"
        raise IndexMismatchError(
            f"{folder} has {kind} by {source.name} (fingerprint {source.fingerprint[:12]}), and "
            f"what is given is {said}: update with that one, or fill all of them in anew by {again}"
        )


def _why_no_index(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist: make it with `shoplens index CATALOG --out {folder}`"
    if not folder.is_dir():
        return f"{folder} is not a folder: give the folder that `shoplens index` wrote"
    if (folder / STAGING).is_dir():
        return (
            f"{folder} holds an unfinished build: run the same `shoplens index` command "
            "again to go on with it"
        )
    if (folder / REJECTS).exists():
        return f"{folder} holds no index, as no product could be used: see {folder / REJECTS}"
    return f"{folder} is not an index (it has no {MANIFEST}): give the folder of `shoplens index`"


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _render(content: dict[str, Any]) -> bytes:
    signed = {**content, "sha256": _checksum(content)}
    return (json.dumps(signed, indent=2, ensure_ascii=False) + "\n").encode()
