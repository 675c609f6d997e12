"""The file of a segment that holds the attributes of its products, one row a product.

For the attribute in place i: `a{i}.top` and `a{i}.probability`, its most probable classes;
`a{i}.given` and `a{i}.filled`, see `Column`. `mode` is what each product was read from (by
those that read as much), a place in MODES, or STALE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from indexing.attributes.columns import TOP, Column, Columns
from indexing.attributes.vocabulary import Attribute
from indexing.match_record import MODES

STALE = -1  # the mode of a product whose main picture is another by now

_CLASSES = {"given": np.int16, "filled": np.int16}


def write_columns(path: Path, columns: Columns, modes: NDArray[np.int8]) -> None:
    """Writes the attributes of some products.

    Args:
        modes: int8 [n], places in MODES, or STALE.
    """
    arrays: dict[str, pa.Array] = {"mode": pa.array(modes, pa.int8())}
    for place, column in enumerate(columns.values()):
        width = column.top.shape[1]
        for name, values in (("top", column.top), ("probability", column.probabilities)):
            flat = pa.array(values.reshape(-1))
            arrays[f"a{place}.{name}"] = pa.FixedSizeListArray.from_arrays(flat, width)
        for name in _CLASSES:
            arrays[f"a{place}.{name}"] = pa.array(getattr(column, name), pa.int16())
    pq.write_table(pa.table(arrays), path)


def read_columns(
    path: Path, attributes: Sequence[Attribute]
) -> tuple[dict[str, Column], NDArray[np.int8]]:
    """What `write_columns` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    table = pq.read_table(path)
    modes = table["mode"].to_numpy().astype(np.int8, casting="safe")
    if len(modes) and not STALE <= modes.min() <= modes.max() < len(MODES):
        raise ValueError(f"{path} has a mode that is none")
    found: dict[str, Column] = {}
    for place, attribute in enumerate(attributes):
        classes = len(attribute.values)
        width = min(TOP, classes)
        top = _matrix(table[f"a{place}.top"], width).astype(np.uint16, casting="safe")
        kept = _matrix(table[f"a{place}.probability"], width)
        own = {
            name: table[f"a{place}.{name}"].to_numpy().astype(kind, casting="safe")
            for name, kind in _CLASSES.items()
        }
        if kept.dtype != np.float16 or any(
            len(values) and not -1 <= int(values.min()) <= int(values.max()) < classes
            for values in (top, *own.values())
        ):
            raise ValueError(f"{path} does not fit the values of {attribute.name!r}")
        found[attribute.name] = Column(attribute, top, kept.astype(np.float16), **own)
    return found, modes


def _matrix(values: pa.ChunkedArray, width: int) -> NDArray[np.generic]:
    whole = values.combine_chunks()
    if not pa.types.is_fixed_size_list(whole.type) or whole.type.list_size != width:
        raise ValueError(f"lists of {width} are {whole.type}")
    flat: NDArray[np.generic] = whole.flatten().to_numpy()
    return flat.reshape(len(whole), width)
