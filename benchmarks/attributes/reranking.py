"""What reranking by attributes does to answers, on products whose attributes are taken as unknown.

Of the titles that no classifier was trained on a third fits the weights (and shut or open the
gate, as an index does for itself), and the rest is asked. Both are galleries of their own: no title
is on both sides. Beside the fitted order stand some that say what its gain is worth: queries of
which nothing is read but what their words name, attributes read as if titles did not name them,
attributes dealt to other products, which must not help, and the merchants' own values, which bound
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.attributes.rerank_gaps import without_words
from benchmarks.statistics import Interval, cluster_bootstrap, mcnemar
from indexing.attributes.columns import Column, Columns
from indexing.attributes.fit import (
    DEPTH,
    Lists,
    chosen,
    first_candidates,
    fitted,
    inactive,
    ndcg,
    ordered,
)
from indexing.attributes.fusing import disagrees
from indexing.attributes.gallery import Gallery, make_gallery
from indexing.attributes.joined import Joined
from indexing.attributes.record import AttributesRecord, RerankRecord
from indexing.attributes.rerank_queries import Maker, RerankQueries
from indexing.attributes.sureness import sure_confidences
from indexing.attributes.vocabulary import ABSTAINED, AttributeClassifier
from indexing.attributes.words import Words
from indexing.embed import Progress
from indexing.errors import BenchmarkError
from indexing.manifest import Manifest
from indexing.match_queries import NoQueriesError
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex
from indexing.table import Products

FIT_SHARE = 1 / 3  # of the held-out titles
RECALLS = (1, 5, 10)
_TIMED = 50  # queries whose reading is timed one by one

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What is asked, and by which kind of queries its weights are fitted.
TASKS: dict[str, tuple[str, Callable[[Maker], RerankQueries], Callable[[Maker], RerankQueries]]] = {
    "titles": ("whole titles", Maker.titles, Maker.text),
    "values": ("short queries such as `red kurtas`", Maker.values, Maker.text),
    "unnamed": ("titles without the words that name a value", Maker.unnamed, Maker.text),
    "like this but": ("a picture and another value", Maker.image_text, Maker.image_text),
    "photos": ("phone photos made from main pictures", Maker.image, Maker.image),
}


@dataclass(frozen=True)
class Effect:
    """An order of candidates against that by the cosine alone, on the same queries.

    Attributes:
        recall: By depth, the change in queries with a right product among the first.
        ndcg: The change in nDCG@10.
        agreement: The change in the share of values, among the first ten products whose merchants
            give them, that are those wanted.
        wins, losses, ties: Queries whose nDCG@10 rose, fell and stayed.
        sign: The two-sided p-value of the sign test on wins and losses.
    """

    recall: dict[int, Interval]
    ndcg: Interval
    agreement: Interval
    wins: int
    losses: int
    ties: int
    sign: float


@dataclass(frozen=True)
class TaskResult:
    """What came of one kind of query.

    Attributes:
        plain: Recall by depth, nDCG@10 and agreement by the cosine alone.
        record: What an index would be reranked by: what was fitted, or nothing where the gate
            is shut.
        said: By attribute the share of queries that surely say something of it, and of these
            the share that is right.
        fitted: With the weights as they were fitted, gate or no gate.
        named: The same weights with nothing but what words of the queries name.
        unsaid: The same weights with attributes that were read off titles without their words,
            see rerank_gaps.py.
        shuffled, oracle: The same with attributes of other products, and with the merchants' own
            values.
        demotion: With demotion alone, as for a value that is chosen.
        lost: The share of right products among the candidates that surely disagree, by what was
            predicted of them: what a hard filter would have lost.
        milliseconds: Of a query, in the median: to read its attributes, and to put its candidates
            into order.
    """

    asked: str
    queries: int
    plain: dict[str, Interval]
    record: RerankRecord
    said: dict[str, tuple[float, float]]
    shipped: Effect
    fitted: Effect
    named: Effect
    unsaid: Effect
    shuffled: Effect
    oracle: Effect
    demotion: Effect
    lost: float
    milliseconds: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """All fields, as `json.dumps` takes them."""
        return {**asdict(self), "record": self.record.model_dump(mode="json")}


def measure_tasks(
    index: OpenIndex,
    encoder: Encoder,
    classifiers: Sequence[AttributeClassifier],
    say: Callable[[str], None],
    progress: Progress,
    fields: Sequence[str] = (),
) -> dict[str, TaskResult]:
    """All tasks on an index that knows attributes.

    Args:
        classifiers: Those of the index.
        fields: Of the products; queries name their values, too, and nothing is predicted of them.

    Raises:
        BenchmarkError: It knows none, too few products were held out from the classifiers, or
            there is no such field.
    """
    record = record_of(index.manifest, index.folder)
    try:
        fit, test = (
            replace(maker, gallery=with_fields(maker.gallery, index.products, fields))
            for maker in _makers(index, encoder, classifiers, record, progress)
        )
    except NoQueriesError as error:
        raise BenchmarkError(f"{index.folder} is too small to measure on: {error}") from error
    say(f"{len(fit.gallery):,} products to fit on, {len(test.gallery):,} to measure on")
    unsaid = without_words(test)
    results: dict[str, TaskResult] = {}
    learned: dict[Callable[[Maker], RerankQueries], tuple[RerankQueries, Lists]] = {}
    for name, (asked, ask, learn) in TASKS.items():
        try:
            if learn not in learned:
                queries = learn(fit)
                learned[learn] = queries, _lists(queries, fit.gallery)
            results[name] = _measured(
                asked, ask(test), test, unsaid, *learned[learn], fit.gallery, record
            )
        except NoQueriesError as error:
            say(f"{name}: not measured: {error}")
    return results


def record_of(manifest: Manifest, folder: Path) -> AttributesRecord:
    """What the index of `folder` knows of attributes. Raises BenchmarkError for nothing."""
    if manifest.attributes is None:
        raise BenchmarkError(
            f"{folder} knows no attributes: build it with `shoplens index` and --attributes FOLDER "
            "or --categories FOLDER"
        )
    return manifest.attributes


def _makers(
    index: OpenIndex,
    encoder: Encoder,
    classifiers: Sequence[AttributeClassifier],
    record: AttributesRecord,
    progress: Progress,
) -> tuple[Maker, Maker]:
    """What makes queries to fit on, and to measure on."""
    titles = index.products.table["title"].to_pylist()
    fit, test = (
        make_gallery(
            titles, index.products.ids, index.images, index.vectors, index.attributes,
            record.trained_on, part,
        )
        for part in ((0.0, FIT_SHARE), (FIT_SHARE, 1.0))
    )  # fmt: skip
    words, reader = Words(record.words), Joined(classifiers)
    sure_from = sure_confidences(record, classifiers, fit)
    first, second = (
        Maker(gallery, index.images, encoder, reader, words, sure_from, progress)
        for gallery in (fit, test)
    )
    return first, second


def with_fields(gallery: Gallery, products: Products, fields: Sequence[str]) -> Gallery:
    """The gallery with what merchants say in these fields, each spelling as a value of its own.

    Raises:
        BenchmarkError: No product has such a field.
    """
    given, values = dict(gallery.given), dict(gallery.values)
    for name in fields:
        if name not in products.names():
            raise BenchmarkError(
                f"no product has the field {name!r}: there are {', '.join(products.names())}"
            )
        said = [str(own or "") for own in products.column(name)[gallery.rows].tolist()]
        values[name] = sorted({own for own in said if own})
        given.setdefault(
            name, np.array([values[name].index(own) if own else ABSTAINED for own in said])
        )
    return replace(gallery, given=given, values=values)


def _measured(
    asked: str,
    queries: RerankQueries,
    maker: Maker,
    unsaid: Columns,
    fit_queries: RerankQueries,
    fit_lists: Lists,
    fit_gallery: Gallery,
    known: AttributesRecord,
) -> TaskResult:
    gallery = maker.gallery
    lists, columns = _lists(queries, gallery), gallery.columns
    sources = {source.kind: source.names for source in known.sources}
    shipped = fitted(fit_queries, fit_lists, fit_gallery.columns, sources)
    every = np.ones(len(fit_queries), np.bool_)
    nothing, names = inactive(fit_queries, columns), tuple(columns)
    raw = chosen(nothing, (), names, fit_queries, fit_lists, fit_gallery.columns, every)
    demoting = nothing.model_copy(update={"demote": names})
    rng = np.random.default_rng(0)
    mixed = rng.permutation(len(gallery))
    shuffled = {name: column.take(mixed) for name, column in columns.items()}
    oracle = {name: _given(column, gallery.given[name]) for name, column in columns.items()}

    words_alone = replace(
        queries,
        evidence=[
            {name: own for name, own in said.items() if own.explicit} for said in queries.evidence
        ],
    )

    def effect(record: RerankRecord, known: Columns, asking: RerankQueries = queries) -> Effect:
        order = ordered(record, asking, lists, known, np.ones(len(asking), np.bool_))
        return _effect(asking, lists, gallery, order)

    places = np.tile(np.arange(lists.places.shape[1]), (len(queries), 1))
    return TaskResult(
        asked=asked,
        queries=len(queries),
        plain={
            name: cluster_bootstrap(values, queries.clusters)
            for name, values in _figures(queries, lists, gallery, places).items()
        },
        record=shipped,
        said={name: said_of(queries, name) for name in columns},
        shipped=effect(shipped, columns),
        fitted=effect(raw, columns),
        named=effect(raw, columns, words_alone),
        unsaid=effect(raw, unsaid),
        shuffled=effect(raw, shuffled),
        oracle=effect(raw, oracle),
        demotion=effect(demoting, columns),
        lost=_lost(queries, lists, columns),
        milliseconds=_timed(maker, queries, lists, raw),
    )


def said_of(queries: RerankQueries, name: str) -> tuple[float, float]:
    """The share of queries that surely say something of an attribute, and the share of these
    that is right, of those of which that is known; 0 where there is none."""
    sure, right = 0, []
    for evidence, wanted in zip(queries.evidence, queries.wanted, strict=True):
        own = evidence.get(name)
        if own is not None and own.sure:
            sure += 1
            if name in wanted:
                right.append(bool(own.asked[wanted[name]]))
    return sure / len(queries), float(np.mean(right)) if right else 0.0


def _lists(queries: RerankQueries, gallery: Gallery) -> Lists:
    return first_candidates(gallery.cosines(queries.vectors, queries.hidden), queries.relevant)


def _given(column: Column, given: Ints) -> Column:
    """The column with the merchants' own values, where they give one."""
    return replace(column, given=given.astype(np.int16))


def _figures(
    queries: RerankQueries, lists: Lists, gallery: Gallery, order: Ints
) -> dict[str, Floats]:
    """Each measure of each query, float64 [q], with its candidates in this order."""
    relevant = np.take_along_axis(lists.relevant, order, axis=1)
    places = np.take_along_axis(lists.places, order, axis=1)[:, :DEPTH]
    found: dict[str, Floats] = {}
    for k in RECALLS:
        found[f"R@{k}"] = np.any(relevant[:, :k], axis=1).astype(np.float64)
    found["nDCG@10"] = ndcg(relevant, lists.answers)
    found["agreement@10"] = np.array(
        [
            agreement(wanted, {name: given[own] for name, given in gallery.given.items()})
            for wanted, own in zip(queries.wanted, places, strict=True)
        ]
    )
    return found


def agreement(wanted: Mapping[str, int], given: Mapping[str, Ints]) -> float:
    """The share of the values that products have which are those wanted, over all wanted
    attributes; 0 where none is given.

    Args:
        wanted: Class by attribute.
        given: int64 [m] by attribute, the products' own classes; ABSTAINED is not counted.
    """
    right, known = 0, 0
    for name, value in wanted.items():
        right += int(np.count_nonzero(given[name] == value))
        known += int(np.count_nonzero(given[name] != ABSTAINED))
    return right / known if known else 0.0


def _effect(queries: RerankQueries, lists: Lists, gallery: Gallery, order: Ints) -> Effect:
    places = np.tile(np.arange(order.shape[1]), (len(order), 1))
    before = _figures(queries, lists, gallery, places)
    after = _figures(queries, lists, gallery, order)
    change = {name: after[name] - before[name] for name in before}
    found = {name: cluster_bootstrap(own, queries.clusters) for name, own in change.items()}
    gain = change["nDCG@10"]
    wins, losses = int(np.count_nonzero(gain > 0)), int(np.count_nonzero(gain < 0))
    return Effect(
        recall={k: found[f"R@{k}"] for k in RECALLS},
        ndcg=found["nDCG@10"],
        agreement=found["agreement@10"],
        wins=wins,
        losses=losses,
        ties=len(gain) - wins - losses,
        sign=mcnemar(wins, losses),
    )


def _lost(queries: RerankQueries, lists: Lists, columns: Columns) -> float:
    """The share of right candidates that surely disagree with their query."""
    right, lost = 0, 0
    for query, evidence in enumerate(queries.evidence):
        own = lists.places[query][lists.relevant[query]]
        gone = np.zeros(len(own), np.bool_)
        for name, said in evidence.items():
            gone |= disagrees(own, columns[name], said)
        right, lost = right + len(own), lost + int(gone.sum())
    return lost / max(1, right)


def _timed(
    maker: Maker, queries: RerankQueries, lists: Lists, record: RerankRecord
) -> tuple[float, float]:
    titles = [title for title in maker.gallery.titles if title.strip()][:_TIMED]
    texts, pixels = queries.how != "phone photos", None
    if queries.how not in ("titles", "values", "titles without values"):
        side = maker.classifier.image_size
        pixels = np.zeros((1, 3, side, side), np.float32)
    reading, ordering = [], []
    for number in range(min(_TIMED, len(queries), len(titles))):
        begun = time.perf_counter()
        maker.classifier.predict(pixels, [titles[number]] if texts else None)
        read = time.perf_counter()
        one = np.zeros(len(queries), np.bool_)
        one[number] = True
        ordered(record, queries, lists, maker.gallery.columns, one)
        reading.append(1000 * (read - begun))
        ordering.append(1000 * (time.perf_counter() - read))
    return float(np.median(reading)), float(np.median(ordering))
