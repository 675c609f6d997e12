"""Pictures of made-up products: really drawn, or only what a scan would say of them."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.esci.planted import CASES, Case, View
from benchmarks.esci.scan import SCHEMA
from benchmarks.esci.synthetic import Looks, product_ids
from indexing.phash import distance, phash
from indexing.rendering import ACCENTS, COLOURS, KINDS, PATTERNS, Thing, render

SIDE = 112  # pixels of a drawn picture
TINY = 80
_APART = 12  # bits between the pHashes of a product's views, far from what makes them one
_MANIFEST = pa.schema(
    [
        ("product_id", pa.string()),
        ("role", pa.string()),
        ("rank", pa.int32()),
        ("path", pa.string()),
    ]
)


def write_manifest(path: Path, products: int) -> None:
    """Which picture belongs to which product: product_id, role, rank and path."""
    with pq.ParquetWriter(path, _MANIFEST) as writer:
        for number, case in enumerate(CASES):
            ids = product_ids(np.arange(number, products, len(CASES)))
            for rank in range(len(case.views)):
                role = "main" if rank == 0 and case.main else "aux"
                writer.write_table(_rows(ids, role, rank, _paths(ids, rank)))
            for _ in range(case.extra_rows.get("repeated", 0)):
                writer.write_table(_rows(ids, "aux", 7, _paths(ids, 0)))
            for _ in range(case.extra_rows.get("without_picture", 0)):
                writer.write_table(_rows(ids, "main", 0, pa.nulls(len(ids), pa.string())))


def _rows(ids: Any, role: str, rank: int, paths: Any) -> pa.Table:
    same = [pa.repeat(role, len(ids)), pa.repeat(pa.scalar(rank, pa.int32()), len(ids))]
    return pa.Table.from_arrays([ids, *same, paths], schema=_MANIFEST)


def _paths(ids: Any, rank: int) -> Any:
    folder = pc.utf8_slice_codeunits(ids, 8)
    return pc.binary_join_element_wise(folder, "/", ids, f"-{rank}.jpg", "")


def placeholder(listed: bool) -> bytes:
    """One of the two pictures that show no product."""
    return _jpeg(Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(0 if listed else 90), 80)


def draw_pictures(folder: Path, looks: Looks, seed: int) -> None:
    """Draw and write the picture files of all products that have a title."""
    (folder).mkdir(parents=True)
    before: list[bytes] = []
    for number in range(len(looks.kind)):
        case = CASES[number % len(CASES)]
        product_id = product_ids(np.array([number]))[0].as_py()
        drawn = _drawn(case, looks, number, random.Random(f"{seed}:{number}"), before)
        for rank, data in enumerate(drawn):
            if data and case.titled:
                path = folder / product_id[8:] / f"{product_id}-{rank}.jpg"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        before = drawn


def _drawn(
    case: Case, looks: Looks, number: int, rng: random.Random, before: list[bytes]
) -> list[bytes]:
    """The files of one product; an empty one is absent."""
    thing = Thing(
        kind=list(KINDS)[looks.kind[number]],
        colour=list(COLOURS)[looks.colour[number]],
        second=list(COLOURS)[looks.second[number]],
        pattern=PATTERNS[looks.pattern[number]],
        accent=rng.choice(list(ACCENTS)),
        width=1.0,
        period=rng.uniform(0.07, 0.12),
    )
    files: list[bytes] = []
    hashes: list[int] = []
    for view in case.views:
        if view == "view":
            picture, seen = _new_view(thing, rng, hashes)
            hashes.append(seen)
            files.append(_jpeg(picture, 88))
        else:
            files.append(_special(view, thing, rng, files, before))
    return files


def _new_view(thing: Thing, rng: random.Random, hashes: list[int]) -> tuple[Image.Image, int]:
    while True:
        picture = render(thing, rng, main=not hashes, size=SIDE)
        seen = phash(picture)
        others = np.array(hashes, np.uint64)
        if not len(others) or distance(others, np.array([seen], np.uint64)).min() > _APART:
            return picture, seen


def _special(
    view: View, thing: Thing, rng: random.Random, files: list[bytes], before: list[bytes]
) -> bytes:
    if view == "again":
        return files[0]
    if view == "resaved":
        with Image.open(io.BytesIO(files[0])) as main:
            return _jpeg(main, 70)
    if view in ("copy", "common"):
        return (files if view == "copy" else before)[-1]
    if view in ("listed", "unlisted"):
        return placeholder(view == "listed")
    if view == "absent":
        return b""
    whole = _jpeg(render(thing, rng, main=False, size=TINY if view == "tiny" else SIDE), 88)
    return whole if view == "tiny" else whole[: len(whole) // 2]


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()


def write_facts(path: Path, products: int, seed: int) -> None:
    """The scan of pictures that nobody has drawn: random hashes, planted as the cases say."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for table in _facts(products, seed):
            writer.write_table(table)


def _facts(products: int, seed: int) -> Iterator[pa.Table]:
    last = np.empty((0, 40), np.uint8)  # of the case before, sha256 and phash of its last view
    for number, case in enumerate(CASES):
        ids = product_ids(np.arange(number, products, len(CASES)))
        rng = np.random.default_rng([seed, 3, number])
        files: list[NDArray[np.uint8]] = []
        for rank, view in enumerate(case.views):
            files.append(_file(view, rng, len(ids), files, last))
            if view != "absent" and case.titled:
                yield _fact_table(_paths(ids, rank), files[-1], view)
        last = files[-1] if files else last[:0]


def _file(
    view: View,
    rng: np.random.Generator,
    rows: int,
    files: list[NDArray[np.uint8]],
    before: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """sha256 and phash of one picture of each product, uint8 [rows, 40]."""
    if view == "again":
        return files[0]
    if view == "copy":
        return files[-1]
    if view in ("listed", "unlisted"):
        data = placeholder(view == "listed")
        with Image.open(io.BytesIO(data)) as picture:
            seen = phash(picture).to_bytes(8, "little")
        one = np.frombuffer(hashlib.sha256(data).digest() + seen, np.uint8)
        return np.tile(one, (rows, 1))
    new = rng.integers(256, size=(rows, 40), dtype=np.uint8)
    if view == "common":
        new[: len(before)] = before[:rows]
    if view == "resaved":
        new[:, 32:] = files[0][:, 32:]
        new[:, 32] ^= 0b0010_0101  # three bits
    return new


def _fact_table(paths: Any, file: NDArray[np.uint8], view: View) -> pa.Table:
    cut = view == "cut"
    rows = len(file)
    digests = [None, pa.py_buffer(file[:, :32].tobytes())]
    hashes = file[:, 32:].copy().view("<u8").ravel()
    side = np.full(rows, TINY if view == "tiny" else SIDE, np.int32)
    unusable = np.full(rows, cut)
    columns = [
        paths,
        pa.nulls(rows, SCHEMA.field("sha256").type)
        if cut
        else pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, digests),
        *(pa.array(values, mask=unusable) for values in (hashes, side, side)),
        pa.repeat(pa.scalar("cut short" if cut else None, pa.string()), rows),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
