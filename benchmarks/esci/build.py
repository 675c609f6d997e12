"""The multi-image retrieval benchmark out of ESCI, read top to bottom.

    OUT/manifest.json          counts of every step, options, SHA-256 of all inputs and files
    OUT/products.parquet       products with their group and part
    OUT/images.parquet         their pictures with hashes
    OUT/train.parquet          catalogs that `read_catalog` opens
    OUT/validation.parquet
    OUT/test_pairs.parquet     picture -> picture
    OUT/queries.parquet        ESCI's own queries -> test products
    OUT/scan.parquet           what is known of each picture file, for the next split
    OUT.partial/               work of an unfinished build, removed at its end

The steps follow MML-TP (Hu et al. 2024) as far as its text goes. The paper's pictures are not
public, so the counts will differ; they stand beside the paper's in the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.esci import manifest as names
from benchmarks.esci.groups import TEST, assign, group_products
from benchmarks.esci.manifest import (
    PARTS,
    Counts,
    GroupCounts,
    Input,
    Manifest,
    Options,
    PartCounts,
    PictureCounts,
    Split,
    read_manifest,
)
from benchmarks.esci.pictures import collect
from benchmarks.esci.products import read_products
from benchmarks.esci.queries import read_queries
from benchmarks.esci.scan import SCHEMA, scan
from benchmarks.esci.selection import read_placeholders, select
from benchmarks.esci.sources import LICENCES, Source
from benchmarks.esci.writing import (
    Parts,
    write_catalog,
    write_facts,
    write_images,
    write_pairs,
    write_products,
    write_table,
)
from indexing.catalog.locations import ImageRoot
from indexing.durable import flush, sha256_of
from indexing.errors import BenchmarkError
from indexing.manifest import FileRecord
from indexing.messages import shown

if TYPE_CHECKING:
    from indexing.embed import Progress


def build_split(
    examples: Path,
    products: Path,
    sources: Sequence[Source],
    images_root: Path,
    out: Path,
    options: Options,
    *,
    facts: Path | None = None,
    placeholders: Path | None = None,
    stage: Callable[[str], None] = lambda name: None,
    progress: Progress | None = None,
) -> Split:
    """Write the benchmark to `out`, in place of an older one.

    Its files depend on what the inputs hold and on `options`, not on the order of rows or
    of sources. A stopped build goes on with the pictures that it had looked at.

    Args:
        examples, products: The official Parquet files.
        sources: Where the products' pictures are named.
        images_root: Where picture paths begin.
        facts: The scan.parquet of an earlier split; its pictures are not looked at again.
        placeholders: A file of SHA-256 digests of pictures that show no product.
        stage: Told the name of each step as it begins.
        progress: Told how many of the pictures have been looked at.

    Raises BenchmarkError where an input cannot be used, no product has two pictures, or
    `out` holds something else.
    """

    def begin(name: str) -> None:
        pa.default_memory_pool().release_unused()
        stage(name)

    _refuse_foreign(out)
    listed = read_placeholders(placeholders) if placeholders else set()
    work = out.with_name(f"{out.name}.partial")
    begin("products")
    catalog = read_products(products, options.locale)
    begin("picture sources")
    batches = chain.from_iterable(source.batches() for source in sources)
    pictures, paths = collect(batches, catalog.ids, keep_urls=options.allow_urls)
    begin("pictures")
    found = scan(paths, ImageRoot(images_root), work / "scan", facts, progress)
    selection = select(pictures, found, len(catalog.table), listed, options)
    if not len(selection.kept):
        raise BenchmarkError(_nothing(selection.counts))
    begin("groups")
    table = catalog.table.take(pa.array(selection.kept)).combine_chunks()
    counted = catalog.counts
    del catalog
    ids = table.column("product_id").combine_chunks()
    titles = table.column("title").combine_chunks()
    group = group_products(ids, titles, selection, pictures, found)
    del pictures
    part = assign(ids, group, options.seed, options.test_products, options.validation_products)
    begin("queries")
    queries = read_queries(examples, ids.filter(pa.array(part == TEST)), options)
    begin("files")
    folder = work / "split"
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = Parts(table, group, part, selection, paths.names, found)
    write_products(folder, parts)
    write_images(folder, parts)
    pairs: dict[names.Part, int] = {
        name: write_catalog(
            folder / f"{name}.parquet", parts, PARTS.index(name), options.train_images
        )
        for name in PARTS
        if name != "test"
    }
    pairs["test"] = write_pairs(folder, parts, options.pair_mode)
    write_table(folder / names.QUERIES, queries.table)
    write_facts(folder / names.SCAN, found, paths.names, SCHEMA)
    begin("checksums")
    sizes = np.bincount(group)
    manifest = Manifest(
        options=options,
        images_root=os.path.relpath(images_root.resolve(), out.resolve()),
        inputs=_inputs(examples, products, sources, facts, placeholders),
        counts=Counts(
            products=counted,
            pictures=selection.counts,
            groups=GroupCounts(
                too_few_pictures=selection.too_few,
                products=len(ids),
                promoted=selection.promoted,
                groups=int((sizes > 0).sum()),
                largest=int(sizes.max()),
            ),
            parts={name: _part(parts, name, pairs[name]) for name in PARTS},
            queries=queries.counts,
        ),
        licences={kind: LICENCES[kind] for kind in ["esci", *sorted({s.kind for s in sources})]},
        files={
            name: FileRecord(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size)
            for name in names.FILES
        },
    )
    text = manifest.model_dump_json(indent=2) + "\n"
    (folder / names.MANIFEST).write_text(text, encoding="utf-8")
    _commit(work, out)
    return Split(out, manifest)


def _part(parts: Parts, name: names.Part, pairs: int) -> PartCounts:
    own = np.flatnonzero(parts.part == PARTS.index(name))
    starts = parts.selection.starts
    return PartCounts(
        products=len(own),
        groups=len(np.unique(parts.group[own])),
        pictures=int((starts[own + 1] - starts[own]).sum()),
        pairs=pairs,
    )


def _inputs(
    examples: Path,
    products: Path,
    sources: Sequence[Source],
    facts: Path | None,
    placeholders: Path | None,
) -> list[Input]:
    """The files that were read, the same list whatever the order of the sources."""
    files = [("examples", examples), ("products", products)]
    files += [(f"images:{source.kind}", path) for source in sources for path in source.files]
    files += [
        (role, path) for role, path in (("facts", facts), ("placeholders", placeholders)) if path
    ]
    records = [
        Input(role=role, name=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)
        for role, path in files
    ]
    return sorted(records, key=lambda record: (record.role, record.name, record.sha256))


def _nothing(counts: PictureCounts) -> str:
    reasons = {**counts.missing_reasons, **counts.broken_reasons}
    top = max(reasons, key=lambda reason: reasons[reason], default="")
    return (
        f"no product has two distinct pictures: {counts.rows:,} rows of the picture sources name "
        f"{counts.named:,} pictures of products, {counts.missing:,} are missing and "
        f"{counts.broken:,} broken"
        + (f" ({top})" if top else "")
        + "; check --images and --images-root"
    )


def _refuse_foreign(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise BenchmarkError(f"{shown(out)} is not a folder: choose another --out")
    if any(out.iterdir()):
        try:
            read_manifest(out)
        except BenchmarkError as error:
            raise BenchmarkError(
                f"{shown(out)} holds other files and is no ESCI split: choose another --out "
                "or empty it"
            ) from error


def _commit(work: Path, out: Path) -> None:
    """Put the finished folder in place and remove what was left of the work."""
    for path in (work / "split").iterdir():
        flush(path)
    flush(work / "split")
    old = work / "old"
    rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    (work / "split").rename(out)
    flush(out.parent)
    rmtree(old, ignore_errors=True)
    rmtree(work / "scan", ignore_errors=True)
    with suppress(OSError):  # somebody's own files are left alone
        work.rmdir()
