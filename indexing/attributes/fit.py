"""Fits how each kind of query is reranked by attributes, and lets it pass only if it helps.

Queries are split into two halves by the product that they were made from. On the first half the
temperature of the cosine and the weights of the attributes are fitted, and how much frequent values
count and whether products that disagree come last are chosen. The second half, which none of that
has seen, decides: the 95% interval of the gain in nDCG@10 must not reach below 0, nor that of one
sort of query (titles, short queries) below -MARGIN: short queries that gain much must not pay for
titles that lose. What does not pass has no weights.

Each kind of classifier has a gate of its own. The first is tried against the cosine alone, and the
next, fitted together with what has passed, against that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.columns import Columns
from indexing.attributes.fusing import Evidence, log_agreement, reranked
from indexing.attributes.gallery import make_gallery
from indexing.attributes.joined import Joined
from indexing.attributes.record import AttributesRecord, Gain, Gate, RerankRecord
from indexing.attributes.rerank_queries import Maker, RerankQueries
from indexing.attributes.sureness import sure_confidences
from indexing.attributes.vocabulary import AttributeClassifier, Kind
from indexing.attributes.words import Words
from indexing.embed import Progress
from indexing.match_queries import NoQueriesError, Titles
from indexing.match_record import MODES, Mode
from indexing.models.protocol import Encoder
from indexing.segments import VectorRows
from indexing.table import Images

CANDIDATES = 200  # products that are put into order, as in a search
DEPTH = 10
GAMMAS = (0.0, 0.5, 1.0)
RESAMPLES = 1000
_STEPS = 400
_RATE = 0.05
_RIDGE = 1e-3  # on standardised features; keeps weights finite where one order is perfect
_LEAST = 0.05  # of the standardised cosine's weight: the temperature stays finite
_SMALL = 1e-6
_DIGITS = 6  # that are kept: more are rounding noise

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """The first candidates of q queries by cosine.

    Attributes:
        places: int64 [q, n], in the gallery, best first.
        cosines: float64 [q, n].
        relevant: bool [q, n].
        answers: int64 [q], how many products of the gallery are relevant.
    """

    places: Ints
    cosines: Floats
    relevant: Bools
    answers: Ints


def fit_reranking(
    titles: Titles,
    ids: Sequence[str],
    images: Images,
    vectors: VectorRows,
    encoder: Encoder,
    columns: Columns,
    classifiers: Sequence[AttributeClassifier],
    progress: Progress | None = None,
) -> AttributesRecord:
    """What the classifiers can be used for: how each kind of query is reranked, or why it is not.

    It encodes at most MAX_QUERIES queries of a kind, each with `encoder` and the classifiers.

    Args:
        titles, ids: Of each product; None for no title.
        images: Of whose rows `vectors`, float32 [n, dim], are.
        columns: Of the products, row by row.
        progress: Called with pictures done and all, for each kind that reads pictures.
    """
    record = AttributesRecord.of(classifiers)
    try:
        gallery = make_gallery(titles, ids, images, vectors, columns, record.trained_on)
    except NoQueriesError as error:
        skipped = dict.fromkeys(MODES, str(error))
        return record.model_copy(
            update={"sure_from": dict.fromkeys(record.categories), "skipped": skipped}
        )
    shown = progress or (lambda _done, _total: None)
    sure_from = sure_confidences(record, classifiers, gallery)
    maker = Maker(
        gallery, images, encoder, Joined(classifiers), Words(record.words), sure_from, shown
    )
    made: dict[Mode, Callable[[], RerankQueries]] = {
        "image": maker.image,
        "text": maker.text,
        "image+text": maker.image_text,
    }
    names = {source.kind: source.names for source in record.sources}
    records: dict[Mode, RerankRecord] = {}
    skipped = {}
    for mode, make in made.items():
        try:
            queries = make()
        except NoQueriesError as error:
            skipped[mode] = str(error)
            continue
        lists = first_candidates(gallery.cosines(queries.vectors, queries.hidden), queries.relevant)
        records[mode] = fitted(queries, lists, gallery.columns, names)
    return record.model_copy(update={"sure_from": sure_from, "rerank": records, "skipped": skipped})


def first_candidates(cosines: NDArray[np.float32], relevant: Sequence[Ints]) -> Lists:
    """The first CANDIDATES of each query.

    Args:
        cosines: float32 [q, g].
        relevant: For each query, int64 [m].
    """
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :CANDIDATES]
    fits = np.stack([np.isin(own, found) for own, found in zip(places, relevant, strict=True)])
    best = np.take_along_axis(cosines, places, axis=1).astype(np.float64)
    return Lists(places, best, fits, np.array([len(found) for found in relevant]))


def fitted(
    queries: RerankQueries, lists: Lists, columns: Columns, sources: Mapping[Kind, Sequence[str]]
) -> RerankRecord:
    """The record of one kind of query: fitted on one half of the queries, judged on the other.

    Args:
        sources: The attributes of each kind of classifier, in the order in which they are tried.
    """
    first = halves(queries.clusters)
    best, passed = inactive(queries, columns), list[str]()
    gates: dict[Kind, Gate] = {}
    for kind, names in sources.items():
        trial = chosen(best, passed, names, queries, lists, columns, first)
        deltas, before = (
            after(record, queries, lists, columns, ~first) for record in (trial, best)
        )
        gates[kind] = _gate(deltas - before, queries.clusters[~first], queries.sorts[~first])
        if gates[kind].open:
            best, passed = trial, [*passed, *names]
    return best.model_copy(update={"gates": gates})


def _gate(deltas: Floats, clusters: Ints, sorts: NDArray[np.str_]) -> Gate:
    gains = {
        str(sort): interval(deltas[sorts == sort], clusters[sorts == sort])
        for sort in np.unique(sorts)
    }
    return Gate(gain=interval(deltas, clusters), gains=gains)


def chosen(
    before: RerankRecord,
    passed: Sequence[str],
    names: Sequence[str],
    queries: RerankQueries,
    lists: Lists,
    columns: Columns,
    first: Bools,
) -> RerankRecord:
    """What is best on the queries of `first`, bool [q], by mean nDCG@10; nobody has judged it.

    Args:
        before: What is demoted by it stays so.
        passed, names: The attributes that may have a weight; the latter may also be demoted by.
    """
    own = {name: columns[name] for name in (*passed, *names)}
    best, best_ndcg = before, -np.inf
    for gamma in GAMMAS:
        logs = agreements(queries.evidence, lists, own, gamma)
        temperature, fits = fit_weights(lists.cosines[first], logs[first], lists.relevant[first])
        weights = dict.fromkeys(columns, 0.0)
        weights |= {name: _rounded(weight) for name, weight in zip(own, fits, strict=True)}
        for demote in (before.demote, (*before.demote, *names)):
            trial = before.model_copy(
                update={"weights": weights, "temperature": _rounded(temperature), "gamma": gamma,
                        "demote": demote}
            )  # fmt: skip
            found = float(after(trial, queries, lists, columns, first).mean())
            if found > best_ndcg:
                best, best_ndcg = trial, found
    return best


def halves(clusters: Ints) -> Bools:
    """Which queries are of the first half, bool [q]; those of one cluster are on one side."""
    names, place = np.unique(clusters, return_inverse=True)
    side = np.arange(len(names)) < (len(names) + 1) // 2
    np.random.default_rng(0).shuffle(side)
    return np.asarray(side[place])


def agreements(
    evidence: Sequence[dict[str, Evidence]], lists: Lists, columns: Columns, gamma: float
) -> Floats:
    """The logarithm that each attribute adds to each candidate's score, float64 [q, n, a]; 0
    where the query is not sure of the attribute."""
    found = np.zeros((*lists.places.shape, len(columns)))
    for place, (name, column) in enumerate(columns.items()):
        prior = np.array(column.attribute.prior)
        for query, own in enumerate(evidence):
            said = own.get(name)
            if said is not None and said.sure:
                shares = column.of(lists.places[query])
                found[query, :, place] = log_agreement(said.distribution, shares, prior, gamma)
    return found


def fit_weights(cosines: Floats, logs: Floats, relevant: Bools) -> tuple[float, Floats]:
    """The temperature and the weights, float64 [a], none below 0, that make relevant candidates
    likely: the cross-entropy of the softmax over a query's candidates, evenly over its relevant
    ones (ListNet, Cao et al., ICML 2007), by Adam (Kingma and Ba, 2015) with projection.

    The problem is convex in 1 / temperature and the weights. Queries without a relevant candidate
    are left out; without any, the temperature is the spread of the cosines and nothing has weight.

    Args:
        cosines: float64 [q, n].
        logs: float64 [q, n, a].
        relevant: bool [q, n].
    """
    inputs = np.concatenate([cosines[..., np.newaxis], logs], axis=2)
    inputs = inputs - inputs.mean(axis=1, keepdims=True)  # what all candidates share has no effect
    spread = np.sqrt((inputs**2).mean(axis=(0, 1)))
    varies = spread > _SMALL
    spread = np.where(varies, spread, 1.0)
    inputs = inputs / spread
    asked = relevant.any(axis=1)
    inputs = inputs[asked]
    least = np.array([_LEAST] + [0.0] * logs.shape[2])
    theta = least.copy()
    theta[0] = 1.0
    if asked.any():
        target = relevant[asked] / relevant[asked].sum(axis=1, keepdims=True)
        theta = _descend(inputs, target, theta, least)
    weights = np.where(varies, theta / spread, 0.0)[1:]
    return float(spread[0] / theta[0]), weights


def _descend(inputs: Floats, target: Floats, theta: Floats, least: Floats) -> Floats:
    """Projected Adam with a rate that falls to 0 along a cosine."""
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, _STEPS + 1):
        scores = inputs @ theta
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        slope = np.einsum("qn,qna->a", chances - target, inputs) / len(inputs) + _RIDGE * theta
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        size = np.sqrt(square / (1 - 0.99**step)) + 1e-12
        rate = _RATE * (1 + np.cos(np.pi * step / _STEPS)) / 2
        theta = np.maximum(theta - rate * mean / (1 - 0.9**step) / size, least)
    return theta


def ndcg(relevant: Bools, answers: Ints) -> Floats:
    """nDCG@10 of ordered candidates, float64 [q].

    Args:
        relevant: bool [q, n], best first.
        answers: int64 [q], how many relevant products there are, at least 1.
    """
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    seen = relevant[:, :DEPTH]
    ideal = np.cumsum(discounts)[np.minimum(answers, DEPTH) - 1]
    shares: Floats = (seen @ discounts[: seen.shape[1]]) / ideal
    return shares


def interval(deltas: Floats, clusters: Ints) -> Gain:
    """The mean with its 95% percentile interval from resampling whole clusters, rounded."""
    _, cluster = np.unique(clusters, return_inverse=True)
    counts = np.bincount(cluster).astype(np.float64)
    sums = np.bincount(cluster, weights=deltas)
    chances = np.full(len(counts), 1 / len(counts))
    drawn = np.random.default_rng(0).multinomial(len(counts), chances, size=RESAMPLES)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return _rounded(deltas.mean()), _rounded(low), _rounded(high)


def plain_ndcg(lists: Lists, which: Bools) -> Floats:
    """nDCG@10 of these queries, bool [q], by the cosine alone, float64."""
    return ndcg(lists.relevant[which], lists.answers[which])


def after(
    record: RerankRecord, queries: RerankQueries, lists: Lists, columns: Columns, which: Bools
) -> Floats:
    """nDCG@10 of these queries as a search with this record would order their candidates."""
    orders = ordered(record, queries, lists, columns, which)
    relevant = np.take_along_axis(lists.relevant[which], orders, axis=1)
    return ndcg(relevant, lists.answers[which])


def ordered(
    record: RerankRecord, queries: RerankQueries, lists: Lists, columns: Columns, which: Bools
) -> Ints:
    """The order into which a search with this record brings the candidates of these queries,
    int64 [queries, n]."""
    orders = []
    for query in np.flatnonzero(which).tolist():
        # A search reads only attributes that have a weight.
        evidence = {
            name: own
            for name, own in queries.evidence[query].items()
            if own.explicit or record.weights.get(name)
        }
        found = reranked(lists.cosines[query], lists.places[query], columns, evidence, record)
        orders.append(found.order)
    return np.array(orders, np.int64).reshape(-1, lists.places.shape[1])


def inactive(queries: RerankQueries, columns: Columns) -> RerankRecord:
    """One that changes nothing."""
    return RerankRecord(
        weights=dict.fromkeys(columns, 0.0), temperature=1.0, gamma=0.0, demote=(),
        queries=queries.how, asked=len(queries),
    )  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
