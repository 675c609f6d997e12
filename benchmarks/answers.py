"""What fusion, collapse, diversity and `no good match` are worth: `python -m benchmarks.answers`.

Queries that had no part in the calibration are asked of real shops, with their product in the
index and with it (and all that are the same) taken out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.answers_shops import Shop, fashion_shop, grocery_shops
from benchmarks.statistics import Floats, Interval, Ints, cluster_bootstrap, summaries
from indexing.cli import show_progress
from indexing.malloc import keep_freed_memory
from indexing.match import probability
from indexing.match_fit import Same, ask
from indexing.match_record import Mode
from indexing.models import load_encoder
from indexing.vectors import inner_products
from search.diversity import diverse, pool_size, relative
from search.fusion import Fuse
from search.neighbours import Neighbours
from search.rank import Ranker

KS = (1, 5, 10)
SEVERAL = 8  # photos
DIVERSITIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
RESAMPLES = 1000

Bools = NDArray[np.bool_]


def weighted_auroc(values: Floats, positive: Bools, weights: Floats) -> float:
    """The chance that a positive has a larger value than a negative, ties counting half.

    Args:
        values: float64 [n].
        positive: bool [n]; of both kinds some must have a weight above 0.
        weights: float64 [n], how often each counts.
    """
    _, place = np.unique(values, return_inverse=True)
    above = np.bincount(place, weights * positive)
    below = np.bincount(place, weights * ~positive)
    wins = above @ (np.cumsum(below) - below / 2)
    return float(wins / (above.sum() * below.sum()))


def bootstrap_aurocs(
    columns: Floats, positive: Bools, clusters: Ints, *, seed: int = 0
) -> list[Interval]:
    """The AUROC of each column and last of the first less the second, with 95% percentile
    intervals from resampling clusters; all share the draws.

    Args:
        columns: float64 [n, m].
        positive: bool [n].
        clusters: int64 [n].
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    number = int(cluster.max()) + 1
    rng = np.random.default_rng(seed)

    def all_of(weights: Floats) -> list[float]:
        each = [weighted_auroc(column, positive, weights) for column in columns.T]
        return [*each, each[0] - each[1]]

    means = all_of(np.ones(len(positive)))
    drawn = [
        all_of(rng.multinomial(number, np.full(number, 1 / number))[cluster].astype(float))
        for _ in range(RESAMPLES)
    ]
    lows, highs = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return [Interval(*map(float, three)) for three in zip(means, lows, highs, strict=True)]


def measure_match(shop: Shop, mode: Mode) -> dict[str, Any]:
    """How well the calibration of `mode` does on queries that it has not seen."""
    index = shop.index
    titles = index.products.column("title").tolist()
    same = Same(titles, index.images, index.vectors)
    asks = ask(shop.queries, same, index.images, index.vectors, index.index)
    match = index.manifest.match
    record = None if match is None else match.modes.get(mode)
    if record is None:
        return {"shop": shop.name, "mode": mode, "calibrated": False}
    queries = len(asks.right)
    found = asks.features.reshape(2 * queries, -1)
    chances = np.array([probability(record, row) for row in found])
    there = np.arange(2 * queries) < queries
    right = np.concatenate([asks.right, np.zeros(queries, np.bool_)])
    clusters = np.tile(asks.products, 2)
    both = np.column_stack([chances, found[:, 0]])
    model, cosine, gain = bootstrap_aurocs(both, there, clusters)
    first_model, first_cosine, _ = bootstrap_aurocs(both, right, clusters)
    result: dict[str, Any] = {
        "shop": shop.name, "mode": mode, "calibrated": True, "queries": queries,
        "products": len(np.unique(asks.products)), "made_of": record.queries,
        "held_out_at_build": record.auroc,
        "right": str(cluster_bootstrap(asks.right.astype(float), asks.products)),
        "auroc": str(model), "auroc_cosine": str(cosine), "gain": str(gain),
        "auroc of a right first answer": str(first_model),
        "auroc_cosine of a right first answer": str(first_cosine),
        "threshold": record.threshold,
    }  # fmt: skip
    if record.threshold is not None:
        said = chances >= record.threshold
        result |= {
            "said_with_product": str(cluster_bootstrap(said[there].astype(float), asks.products)),
            "said_without": str(cluster_bootstrap(said[~there].astype(float), asks.products)),
            "precision_promised": record.precision,
        }
        if said.any():
            result |= {
                "first_is_right": str(cluster_bootstrap(right[said].astype(float), clusters[said])),
                "product_is_there": str(
                    cluster_bootstrap(there[said].astype(float), clusters[said])
                ),
            }
    return result


def measure_fusion(shop: Shop) -> dict[str, str]:
    """R@k of the two ways to fuse, and their paired difference."""
    ranker = Ranker(shop.index)
    everything = np.ones(len(shop.index.images), np.bool_)
    columns = [_recalls(_answers(shop, ranker, f, everything), shop) for f in get_args(Fuse)]
    values = np.column_stack([*columns, columns[1] - columns[0]])
    found = summaries(values, shop.queries.products)
    names = [f"{what} R@{k}" for what in ("max", "top2", "top2 - max") for k in KS]
    return {name: str(summary.micro) for name, summary in zip(names, found, strict=True)}


def measure_lone(shop: Shop) -> dict[str, str]:
    """The same where every other product has one photo and the others have SEVERAL: whether
    `top2` favours the ones or the others."""
    owners = shop.index.images.product
    photos = ~shop.index.images.main
    kept = np.zeros(len(owners), np.bool_)
    for product in np.unique(owners).tolist():
        own = np.flatnonzero(photos & (owners == product))
        kept[own[: SEVERAL if product % 2 else 1]] = True
    ranker, asked = Ranker(shop.index), shop.queries.products
    lone = asked % 2 == 0
    results = {"asked for a lone photo": f"{lone.mean():.3f}"}
    firsts = []
    for fuse in get_args(Fuse):
        answers = _answers(shop, ranker, fuse, kept)
        first = _recalls(answers, shop)[:, 0]
        firsts.append(first)
        results |= {
            f"{fuse} R@1": str(cluster_bootstrap(first, asked)),
            f"{fuse} R@1 of lone photos": str(cluster_bootstrap(first[lone], asked[lone])),
            f"{fuse} R@1 of others": str(cluster_bootstrap(first[~lone], asked[~lone])),
            f"{fuse} lone first answers": f"{(answers[:, 0] % 2 == 0).mean():.3f}",
        }
    return {**results, "top2 - max R@1": str(cluster_bootstrap(firsts[1] - firsts[0], asked))}


def _answers(shop: Shop, ranker: Ranker, fuse: Fuse, allowed: Bools) -> Ints:
    """The first products of each query, int64 [queries, max(KS)]."""
    lists = (
        ranker.ranked(Neighbours(shop.index, vector, allowed), max(KS), fuse=fuse)
        for vector in shop.queries.vectors
    )
    return np.array([[candidate.product for candidate in found] for found in lists])


def _recalls(answers: Ints, shop: Shop) -> Floats:
    """R@k of each query, float64 [queries, len(KS)]."""
    right = answers == shop.queries.products[:, np.newaxis]
    return np.stack([right[:, :k].any(axis=1) for k in KS], axis=1).astype(np.float64)


def measure_lists(shop: Shop) -> dict[str, Any]:
    """What collapse folds, and what diversity costs and gives, over the first ten answers."""
    ranker = Ranker(shop.index)
    same = Same(shop.index.products.column("title").tolist(), shop.index.images, shop.index.vectors)
    folded, kept = [], []
    rows = []
    for vector, product in zip(shop.queries.vectors, shop.queries.products.tolist(), strict=True):
        right = same.of(product)
        near = Neighbours(shop.index, vector)
        shown = ranker.ranked(near, 10, collapse=True)
        folded.append([bool(c.duplicates) for c in shown])
        kept.append(any(not right.isdisjoint((c.product, *c.duplicates)) for c in shown))
        pool = ranker.ranked(near, pool_size(10))
        values = np.array([c.value for c in pool])
        vectors = shop.index.vectors[[c.picture for c in pool]]
        row = []
        for diversity in DIVERSITIES:
            chosen = diverse(relative(values), vectors, 10, diversity)
            row += [
                any(pool[place].product in right for place in chosen),
                _mean_similarity(vectors[chosen]),
            ]
        rows.append(row)
    found = summaries(np.array(rows, np.float64), shop.queries.products)
    clusters = shop.queries.products
    marks = np.array(folded, np.float64)
    return {
        "shop": shop.name,
        "collapse: lists with a fold": str(cluster_bootstrap(marks.max(axis=1), clusters)),
        "collapse: answers that fold": str(cluster_bootstrap(marks.mean(axis=1), clusters)),
        "collapse: R@10": str(cluster_bootstrap(np.array(kept, np.float64), clusters)),
        **{
            f"diversity {diversity}": {
                "R@10": str(found[2 * number].micro),
                "similarity": str(found[2 * number + 1].micro),
            }
            for number, diversity in enumerate(DIVERSITIES)
        },
    }


def _mean_similarity(vectors: NDArray[np.float32]) -> float:
    """The mean cosine of all pairs."""
    pairs = [inner_products(vectors[i : i + 1], vectors[:i]) for i in range(1, len(vectors))]
    return float(np.concatenate(pairs).mean())


def main(
    data: Annotated[Path, typer.Option(help="The folder that holds fashion/ and grocery/.")],
    work: Annotated[Path, typer.Option(help="Where indexes and answers.json go.")] = Path(
        "answers-out"
    ),
    model: Annotated[str, typer.Option(help="The encoder.")] = "builtin",
) -> None:
    """Measure fusion, collapse, diversity and `no good match` on real shops.

    Example:

        python -m benchmarks.answers --data DATA --work answers-out
    """
    keep_freed_memory()
    work.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(model)
    with show_progress() as progress:
        icons, photos = grocery_shops(data, work, encoder, progress)
        fashion = fashion_shop(data, work, encoder, progress)
    matches = [
        measure_match(icons, "image"),
        measure_match(photos, "image"),
        measure_match(fashion, "text"),
    ]
    fusion = {"shop": photos.name, **measure_fusion(photos)}
    lone = {"shop": f"{photos.name}, every other product with one photo", **measure_lone(photos)}
    lists = [measure_lists(photos), measure_lists(fashion)]
    results = {"match": matches, "fusion": fusion, "lone": lone, "lists": lists}
    (work / "answers.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console = Console(width=140)
    for part in (*matches, fusion, lone, *lists):
        table = Table(box=None, show_header=False)
        for name, value in part.items():
            table.add_row(name, str(value))
        console.print(table, "")


if __name__ == "__main__":
    typer.run(main)
