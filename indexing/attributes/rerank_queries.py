"""Queries to a gallery, made from its products, of which it is known what answers them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from indexing.attributes.evidence import named, read
from indexing.attributes.fusing import Evidence
from indexing.attributes.gallery import Gallery
from indexing.attributes.sureness import SureFrom
from indexing.attributes.vocabulary import ABSTAINED, Reader
from indexing.attributes.words import Words
from indexing.embed import BATCH_SIZE, Progress
from indexing.errors import ImageError
from indexing.images import read_image
from indexing.match_queries import (
    MAX_QUERIES,
    MIN_PRODUCTS,
    NoQueriesError,
    can_be_asked,
    embedded,
    phone_photos,
    shuffled,
)
from indexing.match_record import Mode
from indexing.models.protocol import Encoder
from indexing.table import Images

_SEED = 0
_NAMED = 2  # values at most that a short query names

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RerankQueries:
    """q queries of one kind.

    Attributes:
        sorts: str [q], how each was made.
        vectors: float32 [q, dim], unit.
        clusters: int64 [q], the title of the product that each was made from.
        hidden: int64 [q], the place in the gallery of the product whose own picture is asked
            with, where that is no answer: it would be the first, as the query holds it whole.
            -1 for none.
        relevant: For each, int64 [m >= 1], the places in the gallery of what answers it.
        evidence: For each what it says of attributes, as a search would find it.
        wanted: For each the classes that answers should have, by attribute: those it was made
            of, or those of its product.
    """

    sorts: NDArray[np.str_]
    vectors: Floats
    clusters: Ints
    hidden: Ints
    relevant: list[Ints]
    evidence: list[dict[str, Evidence]]
    wanted: list[dict[str, int]]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def how(self) -> str:
        """They were made."""
        return " and ".join(dict.fromkeys(self.sorts.tolist()))


class Asked(NamedTuple):
    """A query that is to be made.

    Attributes:
        sort: How it is made.
        text: "" for a picture alone.
        place: In the gallery, of the product that it is made from.
        relevant, wanted: As in `RerankQueries`.
    """

    sort: str
    text: str
    place: int
    relevant: Ints
    wanted: dict[str, int]


@dataclass(frozen=True)
class Maker:
    """What queries are made with."""

    gallery: Gallery
    images: Images
    encoder: Encoder
    classifier: Reader
    words: Words
    sure_from: SureFrom
    progress: Progress

    def text(self) -> RerankQueries:
        """Half titles, answered by the products of that title, and half short queries such as
        "red kurtas", answered by those whose merchants say so. Raises NoQueriesError."""
        half = MAX_QUERIES // 2
        asked = [*islice(self._titles(), half), *islice(self._values(), half)]
        return self._texts(asked)

    def titles(self) -> RerankQueries:
        """Titles alone. Raises NoQueriesError."""
        return self._texts([*islice(self._titles(), MAX_QUERIES)])

    def values(self) -> RerankQueries:
        """Short queries alone. Raises NoQueriesError."""
        return self._texts([*islice(self._values(), MAX_QUERIES)])

    def unnamed(self) -> RerankQueries:
        """Titles without the words that name a value, answered by the products of the whole title.
        Raises NoQueriesError."""
        told = (one._replace(text=self.words.without(one.text)) for one in self._titles())
        left = (one._replace(sort="titles without values") for one in told if one.text)
        return self._texts([*islice(left, MAX_QUERIES)])

    def _texts(self, asked: Sequence[Asked]) -> RerankQueries:
        texts = [one.text for one in asked]
        self._check([one.place for one in asked])
        vectors = embedded(lambda: self.encoder.embed_texts(texts))
        return self._queries(vectors, asked, self._evidence(None, texts, "text"))

    def image_text(self) -> RerankQueries:
        """A product's picture with another value of one of its attributes ("like this but red"),
        answered by products whose merchants give that value and otherwise the same as for the
        product, which is hidden itself. Raises NoQueriesError."""
        chosen = [*islice(self._changed(), MAX_QUERIES)]
        self._check([one.place for one in chosen])
        words = sorted({one.text for one in chosen})
        of_words = dict(zip(words, embedded(lambda: self.encoder.embed_texts(words)), strict=True))
        asked, vectors, evidence = [], [], []
        self.progress(0, len(chosen))
        for start in range(0, len(chosen), BATCH_SIZE):
            part, pictures = [], []
            for one in chosen[start : start + BATCH_SIZE]:
                picture = self.picture(one.place)
                own = self._main_vector(one.place).astype(np.float64) + of_words[one.text]
                if picture is not None and np.linalg.norm(own) > 1e-6:
                    part.append(one)
                    pictures.append(picture)
                    vectors.append((own / np.linalg.norm(own)).astype(np.float32))
            evidence += self._evidence(pictures, [one.text for one in part], "image+text")
            asked += part
            self.progress(min(start + BATCH_SIZE, len(chosen)), len(chosen))
        self._check([one.place for one in asked])
        found = self._queries(np.array(vectors), asked, evidence)
        return replace(found, hidden=np.array([one.place for one in asked]))

    def image(self) -> RerankQueries:
        """Phone photos made from main pictures, answered by the products of the same title.
        Raises NoQueriesError."""
        if not self.classifier.image_size:
            raise NoQueriesError("titles alone are read, and no pictures")
        mains = self.gallery.mains
        place_of = {int(row): place for place, row in enumerate(mains)}
        files = [row for row in place_of if self.images.path(row) is not None]
        self._check([place_of[row] for row in files])
        wanted = [(row, 0) for row in shuffled(files)[:MAX_QUERIES]]
        vectors: list[Floats] = []
        places: list[int] = []
        evidence: list[dict[str, Evidence]] = []
        self.progress(0, len(wanted))
        for start in range(0, len(wanted), BATCH_SIZE):
            part = [*phone_photos(self.images, wanted[start : start + BATCH_SIZE], files)]
            if photos := [photo for _, photo in part]:
                vectors += list(embedded(partial(self.encoder.embed_images, photos)))
                evidence += self._evidence(photos, None, "image")
                places += [place_of[row] for row, _ in part]
            self.progress(min(start + BATCH_SIZE, len(wanted)), len(wanted))
        self._check(places)
        asked = [self._of_title("phone photos", "", place) for place in places]
        return self._queries(np.array(vectors), asked, evidence)

    def _titles(self) -> Iterator[Asked]:
        """Titles, each once."""
        first: dict[int, int] = {}
        for place, title in enumerate(self.gallery.titles):
            if can_be_asked(title):
                first.setdefault(int(self.gallery.same[place]), place)
        for place in shuffled(first.values()):
            yield self._of_title("titles", self.gallery.titles[place], place)

    def _values(self) -> Iterator[Asked]:
        """One or two values of products, as a text; each text once."""
        rng, seen = random.Random(_SEED), set()
        for place in shuffled(range(len(self.gallery))):
            known = self._known(place)
            if not known:
                continue
            names = rng.sample(sorted(known), rng.randint(1, min(_NAMED, len(known))))
            wanted = {name: known[name] for name in known if name in names}
            text = " ".join(self._written(name, value) for name, value in wanted.items())
            if text not in seen:
                seen.add(text)
                yield Asked("values", text, place, self.gallery.with_values(wanted), wanted)

    def _changed(self) -> Iterator[Asked]:
        """Values that products have not, where others have them and are otherwise the same."""
        rng = random.Random(_SEED)
        for place in shuffled(range(len(self.gallery))):
            known = self._known(place)
            if not known:
                continue
            name = rng.choice(sorted(known))
            rest = {other: value for other, value in known.items() if other != name}
            others = self.gallery.given[name][self.gallery.with_values(rest)]
            options = set(others.tolist()) - {ABSTAINED, known[name]}
            if options:
                value = rng.choice(sorted(options))
                wanted = {**rest, name: value}
                text, relevant = self._written(name, value), self.gallery.with_values(wanted)
                yield Asked("pictures with another value", text, place, relevant, wanted)

    def _known(self, place: int) -> dict[str, int]:
        """What the merchant says of a product."""
        values = {name: int(given[place]) for name, given in self.gallery.given.items()}
        return {name: value for name, value in values.items() if value != ABSTAINED}

    def _written(self, name: str, value: int) -> str:
        return self.gallery.values[name][value].lower()

    def _of_title(self, sort: str, text: str, place: int) -> Asked:
        """A query for the products that have the title of this one."""
        relevant = np.flatnonzero(self.gallery.same == self.gallery.same[place])
        return Asked(sort, text, place, relevant, self._known(place))

    def _main_vector(self, place: int) -> Floats:
        """The vector of a product's main picture."""
        rows = np.flatnonzero(self.images.product == self.gallery.rows[place])
        within = int(np.flatnonzero(rows == self.gallery.mains[place])[0])
        vector: Floats = self.gallery.vectors[self.gallery.starts[place] + within]
        return vector

    def picture(self, place: int) -> Image | None:
        """The main picture of a product, for the classifier; None where it cannot be had."""
        path = self.images.path(int(self.gallery.mains[place]))
        if path is None:
            return None
        try:
            return read_image(Path(path), at_least=self.classifier.image_size)
        except ImageError:  # gone since it was encoded
            return None

    def _evidence(
        self, pictures: Sequence[Image] | None, texts: Sequence[str] | None, mode: Mode
    ) -> list[dict[str, Evidence]]:
        """Of each query what its words name, and of all other attributes what is read."""
        attributes = {name: column.attribute for name, column in self.gallery.columns.items()}
        count = len(texts or pictures or ())
        found = [named(self.words, attributes, text) for text in texts or [""] * count]
        open_ones = [place for place in range(count) if len(found[place]) < len(attributes)]
        for start in range(0, len(open_ones), BATCH_SIZE):
            part = open_ones[start : start + BATCH_SIZE]
            pixels = (
                None
                if pictures is None or not self.classifier.image_size
                else np.stack([self.classifier.preprocess(pictures[place]) for place in part])
            )
            shares = self.classifier.predict(
                pixels, None if texts is None else [texts[place] for place in part]
            )
            for row, place in enumerate(part):
                for name, attribute in attributes.items():
                    if name not in found[place]:
                        found[place][name] = read(
                            attribute, shares[name][row], mode, self.sure_from
                        )
        return found

    def _queries(
        self, vectors: Floats, asked: Sequence[Asked], evidence: list[dict[str, Evidence]]
    ) -> RerankQueries:
        return RerankQueries(
            np.array([one.sort for one in asked]),
            vectors,
            self.gallery.same[[one.place for one in asked]],
            np.full(len(asked), -1, np.int64),
            [one.relevant for one in asked],
            evidence,
            [one.wanted for one in asked],
        )

    def _check(self, places: Sequence[int]) -> None:
        different = len(np.unique(self.gallery.same[places])) if places else 0
        if different < MIN_PRODUCTS:
            raise NoQueriesError(
                f"queries of {different} titles that the classifier was not trained on; at least "
                f"{MIN_PRODUCTS} are needed"
            )
