"""Indexes that never were on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from indexing.catalog.product import Product, ProductImage
from indexing.match_record import MatchRecord
from indexing.store import OpenIndex
from indexing.table import Products, product_batch
from indexing.vectors import ExactIndex
from tests.conftest import pictures_of

MakeIndex = Callable[..., OpenIndex]


@pytest.fixture
def make_index() -> MakeIndex:
    """Makes an index of unit vectors whose owners are given; product i is called `p<i>`."""

    def make(
        owners: Sequence[int],
        vectors: NDArray[np.float32],
        hashes: Sequence[int] | None = None,
        match: MatchRecord | None = None,
        main: Sequence[bool] | None = None,
    ) -> OpenIndex:
        picture = (ProductImage(location="x"),)
        products = [
            Product(id=f"p{row}", price=float(row), images=picture)
            for row in range(max(owners, default=-1) + 1)
        ]
        index = SimpleNamespace(
            products=Products(pa.Table.from_batches([product_batch(products)])),
            images=pictures_of(owners, main=main, hashes=hashes),
            vectors=vectors,
            index=ExactIndex.from_vectors(vectors),
            manifest=SimpleNamespace(match=match, attributes=None),
            attributes={},
            known=lambda product: {},
            folder=Path("nowhere"),
        )
        return cast("OpenIndex", index)

    return make
