"""The catalog of an index as CSV, with what was filled in."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO

from indexing.store import OpenIndex

_ROWS = 4096  # products in memory at once
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute


def export_csv(index: OpenIndex, file: TextIO) -> None:
    """Writes a row a product: the fields, the merchant's attributes, and for each attribute that
    is filled in NAME, NAME_confidence and NAME_source ("given", "filled" or nothing). A column
    of the merchant's that has one of these names, as of an earlier export, is left out.

    A text that a spreadsheet would take for a formula gets a ' in front.
    """
    predicted = list(index.attributes)
    own = [f"{name}{end}" for name in predicted for end in ("", "_confidence", "_source")]
    fields = [name for name in index.products.names() if name not in own]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_safe(name) for name in fields + own])
    for row, values in _rows(index):
        cells = [values.get(name, "") for name in fields]
        known = index.known(row)
        for name in predicted:
            raw, found = values.get(name, ""), known.get(name)
            if found is not None and found.source == "filled":
                cells += [found.value, f"{found.confidence:.3f}", "filled"]
            elif raw:  # also one that the classifier does not know
                cells += [raw, "1", "given"]
            else:
                cells += ["", "", ""]
        writer.writerow([_safe(cell) for cell in cells])


def _rows(index: OpenIndex) -> Iterator[tuple[int, dict[str, str]]]:
    """Each product's number and its own values as text."""
    row = 0
    for batch in index.products.table.to_batches(max_chunksize=_ROWS):
        for values in batch.to_pylist():
            attributes = dict(values.pop("attributes") or ())
            texts = {**attributes, **{k: v for k, v in values.items() if v is not None}}
            yield row, {name: str(value) for name, value in texts.items()}
            row += 1


def _safe(cell: str) -> str:
    if cell.startswith(_FORMULA) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
