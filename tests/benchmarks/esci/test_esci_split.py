"""The whole builder: planted counts, the same bytes from the same content, and safe folders."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.esci import official, scan, writing
from benchmarks.esci.generator import EXAMPLES, FACTS, IMAGES, MANIFEST, PLACEHOLDERS, PRODUCTS
from benchmarks.esci.manifest import FILES, Split, read_split
from benchmarks.esci.planted import CASES, expected
from indexing.catalog import read_catalog
from indexing.durable import sha256_of
from indexing.errors import BenchmarkError
from indexing.images import read_image
from indexing.phash import phash
from indexing.titles import normalise_title

Builder = Callable[..., Split]


def digests(split: Split) -> dict[str, str]:
    return {name: sha256_of(split.folder / name) for name in FILES}


def by_product(split: Split) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in split.table("images.parquet").to_pylist():
        found[row["product_id"]].append(row)
    return found


@pytest.mark.parametrize("kind", ["drawn", "described"])
def test_the_planted_cases_are_found_and_nothing_else(
    kind: str, split: Builder, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    counts = split(folder).manifest.counts
    planted = expected({"drawn": 72, "described": 1200}[kind])
    products, pictures, groups = counts.products, counts.pictures, counts.groups
    found = {
        **products.model_dump(exclude={"repeated"}),
        **pictures.model_dump(exclude={"rows", "missing_reasons", "broken_reasons"}),
        **groups.model_dump(),
        "picture_rows": pictures.rows,
    }
    assert {name: found[name] for name in planted} == planted
    assert groups.largest == 2
    assert json.loads((folder / "planted.json").read_text()) == planted


def test_counts_add_up(described: Path, split: Builder) -> None:
    made = split(described)
    counts = made.manifest.counts
    products = counts.products.model_dump()
    assert products.pop("rows") == sum(products.values())
    pictures = counts.pictures.model_dump(exclude={"missing_reasons", "broken_reasons"})
    head = ("unreadable", "other_products", "without_picture", "repeated", "named")
    assert pictures.pop("rows") == sum(pictures[name] for name in head)
    assert pictures["named"] == sum(pictures[name] for name in pictures if name not in head)
    parts = counts.parts.values()
    assert sum(part.products for part in parts) == counts.groups.products
    assert sum(part.groups for part in parts) == counts.groups.groups
    assert sum(part.pictures for part in parts) == counts.pictures.kept
    assert counts.groups.products + counts.groups.too_few_pictures == counts.products.usable
    assert made.table("products.parquet").num_rows == counts.groups.products
    assert made.table("images.parquet").num_rows == counts.pictures.kept


def test_pictures_of_a_product_are_distinct_and_in_order(drawn: Path, split: Builder) -> None:
    made = split(drawn)
    rows = made.table("images.parquet").to_pylist()
    keys = [(row["product_id"], row["role"] == "aux", row["rank"]) for row in rows]
    assert keys == sorted(keys)
    for own in by_product(made).values():
        assert [row["role"] for row in own] == ["main"] + ["aux"] * (len(own) - 1)
        assert [row["rank"] for row in own] == list(range(len(own)))
        hashes = [int(row["phash"], 16) for row in own]
        for i, one in enumerate(hashes):
            assert all((one ^ other).bit_count() > 4 for other in hashes[:i])
    for row in rows:
        path = drawn / IMAGES / row["path"]
        assert row["sha256"] == sha256_of(path)
        assert row["phash"] == f"{phash(read_image(path)):016x}"


def test_a_group_is_in_one_part_with_all_that_ties_it(described: Path, split: Builder) -> None:
    made = split(described, test_products=200, validation_products=100)
    products = made.table("products.parquet").to_pylist()
    assert [row["product_id"] for row in products] == sorted(row["product_id"] for row in products)
    part = {row["product_id"]: row["part"] for row in products}
    assert {row["group"] for row in products} <= set(part)
    seen: dict[str, set[str]] = defaultdict(set)
    for row in products:
        for tie in (row["group"], normalise_title(row["title"])):
            seen[tie].add(row["part"])
    for row in made.table("images.parquet").to_pylist():
        assert row["part"] == part[row["product_id"]]
        seen[row["sha256"]].add(row["part"])
    assert {len(found) for found in seen.values()} == {1}
    assert {"train", "validation", "test"} == set(part.values())


@pytest.mark.parametrize("mode", ["all_pairs", "aux_to_main"])
def test_pairs_are_those_of_plain_loops(mode: str, described: Path, split: Builder) -> None:
    made = split(described, pair_mode=mode, test_products=150)
    wanted = []
    for product, own in by_product(made).items():
        if own[0]["part"] != "test":
            continue
        for later, query in enumerate(own):
            targets = own[:later] if mode == "all_pairs" else own[: min(later, 1)]
            for target in targets:
                ends = [end[key] for end in (query, target) for key in ("path", "sha256")]
                wanted.append((product, *ends))
    table = made.table("test_pairs.parquet")
    found = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert found == wanted
    numbers = Counter(row["product_id"] for own in by_product(made).values() for row in own)
    tested = [
        numbers[row["product_id"]]
        for row in made.table("products.parquet").to_pylist()
        if row["part"] == "test"
    ]
    closed_form = sum(math.comb(n, 2) if mode == "all_pairs" else n - 1 for n in tested)
    assert made.manifest.counts.parts["test"].pairs == len(found) == closed_form


@pytest.mark.parametrize("choice", ["main", "aux", "all", "main+1"])
def test_train_and_validation_are_catalogs(choice: str, drawn: Path, split: Builder) -> None:
    made = split(drawn, train_images=choice, test_products=8, validation_products=8)
    titles = {row["product_id"]: row["title"] for row in made.table("products.parquet").to_pylist()}
    chosen = {"main": slice(1), "aux": slice(1, None), "all": slice(None), "main+1": slice(2)}
    for part in ("train", "validation"):
        catalog = read_catalog(made.folder / f"{part}.parquet", images_root=drawn / IMAGES)
        products = {product.id: product for product in catalog}
        assert catalog.counts.rejected == catalog.counts.images_rejected == 0
        wanted = {
            product: [row["path"] for row in own[chosen[choice]]]
            for product, own in by_product(made).items()
            if own[0]["part"] == part
        }
        assert {
            product.id: [image.location for image in product.images]
            for product in products.values()
        } == wanted
        assert all(product.title == titles[product.id] for product in products.values())
        assert all(
            image.path.is_file() for own in products.values() for image in own.images if image.path
        )
        counts = made.manifest.counts.parts[part]
        assert (counts.products, counts.pairs) == (len(wanted), sum(map(len, wanted.values())))


def test_queries_are_over_the_test_products(described: Path, split: Builder) -> None:
    made = split(described, test_products=200)
    tested = {
        row["product_id"]
        for row in made.table("products.parquet").to_pylist()
        if row["part"] == "test"
    }
    rows = made.table("queries.parquet").to_pylist()
    assert rows
    assert {row["product_id"] for row in rows} <= tested
    assert made.manifest.counts.queries.judgments == len(rows)


def shuffled(folder: Path, out: Path, seed: int) -> Path:
    """The same files with their rows in another order, and in row groups of another size."""
    out.mkdir()
    rng = random.Random(seed)
    for name in (EXAMPLES, PRODUCTS, MANIFEST, FACTS):
        table = pq.read_table(folder / name)
        order = rng.sample(range(len(table)), len(table))
        pq.write_table(
            table.take(pa.array(order)), out / name, row_group_size=rng.randrange(50, 500)
        )
    (out / PLACEHOLDERS).write_text((folder / PLACEHOLDERS).read_text())
    (out / IMAGES).mkdir()
    return out


def test_row_order_and_batch_size_change_no_byte(
    described: Path, split: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = split(described, "once")
    other = shuffled(described, tmp_path / "shuffled", seed=5)
    monkeypatch.setattr(official, "BATCH", 97)
    monkeypatch.setattr(official, "CHUNK", 700)
    again = split(other, "again")
    assert digests(again) == digests(once)
    assert again.manifest.counts == once.manifest.counts


def test_the_order_of_sources_changes_no_byte(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    table = pq.read_table(described / MANIFEST)
    parts = [table.slice(0, 1000), table.slice(600), table.slice(100, 50)]
    names = [str(tmp_path / f"part{number}.parquet") for number in range(3)]
    for name, part in zip(names, parts, strict=True):
        pq.write_table(part, name)
    one, two = split(described, "one", sources=names), split(described, "two", sources=names[::-1])
    assert digests(one) == digests(two) == digests(split(described, "three"))
    manifests = [(made.folder / "manifest.json").read_bytes() for made in (one, two)]
    assert manifests[0] == manifests[1]


def test_the_same_seed_gives_the_same_and_another_one_another(
    described: Path, split: Builder
) -> None:
    one, two, other = (
        split(described, out, seed=seed) for out, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert (one.folder / "manifest.json").read_bytes() == (
        two.folder / "manifest.json"
    ).read_bytes()
    assert digests(one) == digests(two)
    kept, drawn_anew = (digests(made) for made in (one, other))
    assert kept["scan.parquet"] == drawn_anew["scan.parquet"]
    assert kept["products.parquet"] != drawn_anew["products.parquet"]
    parts = [
        {row["product_id"]: row["part"] for row in made.table("products.parquet").to_pylist()}
        for made in (one, other)
    ]
    assert parts[0].keys() == parts[1].keys()
    assert sum(parts[0][name] == "test" != parts[1][name] for name in parts[0]) > 50


def test_an_unrelated_product_moves_only_what_is_at_the_borders(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    quotas = {"test_products": 100, "validation_products": 50}
    before = split(described, "before", **quotas)
    more = tmp_path / "more"
    more.mkdir()
    (more / IMAGES).mkdir()
    for name in (EXAMPLES, PLACEHOLDERS):
        (more / name).write_bytes((described / name).read_bytes())
    new = {"product_id": "B0NEW", "product_title": "quite new", "product_locale": "us"}
    pictures = [
        {"product_id": "B0NEW", "role": "main", "rank": rank, "path": f"new{rank}.jpg"}
        for rank in range(2)
    ]
    facts = [
        {"path": f"new{rank}.jpg", "sha256": bytes([rank]) * 32, "phash": rank * 255}
        | {"width": 200, "height": 200}
        for rank in range(2)
    ]
    for name, rows in ((PRODUCTS, [new]), (MANIFEST, pictures), (FACTS, facts)):
        table = pq.read_table(described / name)
        table = pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])
        pq.write_table(table, more / name)
    after = split(more, "after", **quotas)
    parts = [
        {row["product_id"]: row["part"] for row in made.table("products.parquet").to_pylist()}
        for made in (before, after)
    ]
    assert parts[1].keys() - parts[0].keys() == {"B0NEW"}
    moved = {
        (parts[0][name], parts[1][name]) for name in parts[0] if parts[0][name] != parts[1][name]
    }
    assert moved <= {("test", "validation"), ("validation", "train")}
    assert sum(parts[0][name] != parts[1][name] for name in parts[0]) <= 4  # a group has two


def test_a_stopped_build_goes_on_to_the_same_bytes(
    drawn: Path, split: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = split(drawn, "whole")
    monkeypatch.setattr(scan, "SHARD", 16)

    def stop(done: int, total: int) -> None:
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(drawn, "stopped", progress=stop)
    assert not (tmp_path / "stopped").exists()
    assert (tmp_path / "stopped.partial").is_dir()
    totals = []
    again = split(drawn, "stopped", progress=lambda done, total: totals.append(total))
    counts = whole.manifest.counts.pictures
    assert 48 - counts.missing <= counts.named - totals[0] <= 48  # three shards of 16
    assert digests(again) == digests(whole)
    assert not (tmp_path / "stopped.partial").exists()


def test_an_older_scan_spares_the_pictures(drawn: Path, split: Builder, tmp_path: Path) -> None:
    first = split(drawn, "first")
    seen: list[int] = []
    second = split(
        drawn,
        "second",
        facts=first.folder / "scan.parquet",
        progress=lambda done, total: seen.append(total),
    )
    assert set(seen) == {first.manifest.counts.pictures.missing}
    assert digests(second) == digests(first)


def test_files_longer_than_a_row_group_are_whole(
    described: Path, split: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = split(described, "once")
    monkeypatch.setattr(writing, "ROWS", 37)
    again = split(described, "again")
    for name in FILES:
        assert again.table(name).equals(once.table(name)), name


def test_a_split_replaces_an_older_one_and_nothing_else(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    split(described, seed=1)
    assert split(described, seed=2).manifest.options.seed == 2
    assert read_split(tmp_path / "out").manifest.options.seed == 2
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_text("me")
    with pytest.raises(BenchmarkError, match="holds other files"):
        split(described, "photos")
    assert [path.name for path in foreign.iterdir()] == ["holiday.jpg"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchmarkError, match="not a folder"):
        split(described, "file")


def test_somebody_s_own_folder_beside_the_split_is_left_alone(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/notes.txt").write_text("mine")
    split(described)
    assert (tmp_path / "out.partial/notes.txt").read_text() == "mine"


def test_no_picture_at_all_says_why(described: Path, split: Builder, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no product has two .* \(no such file under the im"):
        split(described, facts=None)
    assert not (tmp_path / "out").exists()


def test_a_locale_without_products_names_those_there_are(described: Path, split: Builder) -> None:
    with pytest.raises(BenchmarkError, match=r"no product of locale 'de' has a title.* es, jp, us"):
        split(described, locale="de")


def test_a_file_that_is_no_parquet_is_refused(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    other = shuffled(described, tmp_path / "other", seed=1)
    (other / PRODUCTS).write_text("product_id,product_title\n")
    with pytest.raises(BenchmarkError, match=rf"{PRODUCTS}: cannot be read"):
        split(other)


def test_a_product_listed_twice_counts_once_whatever_the_order(
    described: Path, split: Builder, tmp_path: Path
) -> None:
    made = []
    for turn in (1, -1):
        folder = shuffled(described, tmp_path / f"turn{turn}", seed=turn + 5)
        table = pq.read_table(folder / PRODUCTS)
        us = table.filter(pc.equal(table.column("product_locale"), "us"))
        us = us.sort_by("product_id").slice(0, 40)
        titles = pa.array([f"A title {number}" for number in range(40)])
        other = us.set_column(1, table.schema.field(1), titles)
        tables = [table, other][::turn]
        pq.write_table(pa.concat_tables(tables), folder / PRODUCTS)
        made.append(split(folder, f"out{turn}"))
    assert digests(made[0]) == digests(made[1])
    titled = made[0].manifest.counts.products
    assert titled.repeated + titled.usable == expected(1200)["usable"] + 40
    assert titled.repeated > 30


def test_each_case_is_planted() -> None:
    reasons = {name for case in CASES for name in case.lost | case.extra_rows}
    counted = {name for name, count in expected(24).items() if count}
    assert reasons <= counted
