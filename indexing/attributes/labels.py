"""The label table: what each of a merchant's own values counts as. People may edit it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexing.attributes.vocabulary import OTHER
from indexing.durable import replace_bytes
from indexing.errors import TrainingError
from indexing.titles import normalise_title

COLUMNS = ("attribute", "raw", "count", "value")


@dataclass(frozen=True)
class Label:
    """One row of the table.

    Attributes:
        raw: As the merchant writes it, in its most frequent spelling.
        count: Products that have it; for people.
        value: What it counts as: a value, OTHER, or nothing at all ("" = unknown).
    """

    attribute: str
    raw: str
    count: int
    value: str


class Labels:
    """What raw values count as; case, accents' form, spaces and punctuation do not matter."""

    def __init__(self, rows: Sequence[Label]) -> None:
        self.rows = tuple(rows)
        self._value = {(row.attribute, normalise_title(row.raw)): row.value for row in rows}

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes, in the order of the table."""
        return tuple(dict.fromkeys(row.attribute for row in self.rows))

    def values(self, attribute: str) -> tuple[str, ...]:
        """The different values of an attribute, most frequent first, OTHER last."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            if row.attribute == attribute and row.value:
                counts[row.value] += row.count
        ordered = sorted(counts, key=lambda value: (value == OTHER, -counts[value], value))
        return tuple(ordered)

    def value_of(self, attribute: str, raw: str) -> str | None:
        """What a raw value counts as; None for a blank one and one that means nothing. A value
        that the table does not have is OTHER, even where no value of the attribute is."""
        normal = normalise_title(raw)
        if not normal:
            return None
        return self._value.get((attribute, normal), OTHER) or None

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        """For each attribute what its values are called, synonyms among them: for `Words`."""
        ways: dict[str, list[tuple[str, str]]] = {name: [] for name in self.names}
        for row in self.rows:
            if row.value:
                ways[row.attribute] += [(row.value, row.value), (row.raw, row.value)]
        return ways


def suggest(raw: Mapping[str, Iterable[str]], *, least: int) -> Labels:
    """A table for these raw values, one a product, of each attribute: spellings of one value
    are joined, and values of fewer than `least` products become OTHER.

    Raises:
        TrainingError: An attribute has fewer than two values that are frequent enough.
    """
    rows: list[Label] = []
    for attribute, texts in raw.items():
        spellings: dict[str, Counter[str]] = {}
        for text in texts:
            if normal := normalise_title(text):
                spellings.setdefault(normal, Counter())[" ".join(text.split())] += 1
        found = [
            (min(counts, key=lambda text: (-counts[text], text)), counts.total())
            for counts in spellings.values()
        ]
        found.sort(key=lambda pair: (-pair[1], pair[0]))
        if sum(count >= least for _, count in found) < 2:
            raise TrainingError(
                f"attribute {attribute!r} has {len(found)} values, of which fewer than two are "
                f"those of {least} products or more: leave it out, or lower --least"
            )
        rows += [
            Label(attribute, text, count, text if count >= least else OTHER)
            for text, count in found
        ]
    return Labels(rows)


def write_labels(labels: Labels, path: Path) -> None:
    """Writes the table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.attribute, row.raw, row.count, row.value) for row in labels.rows)
    replace_bytes(path, text.getvalue().encode("utf-8", "surrogatepass"))


def read_labels(path: Path) -> Labels:
    """Reads the table.

    Raises:
        TrainingError: It cannot be read, or a row is wrong; names the row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"the label table {path} cannot be read: {error}") from error
    rows: list[Label] = []
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(table, start=2):
        try:
            attribute, raw, value = row["attribute"], row["raw"], (row["value"] or "").strip()
            count = int(row["count"])
            key = (attribute, normalise_title(raw))
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{path}, line {number}: expected the columns {', '.join(COLUMNS)} ({error})"
            ) from error
        if not attribute or not key[1] or key in seen:
            problem = "is there twice" if key in seen else "has no attribute or no raw value"
            raise TrainingError(f"{path}, line {number}: {attribute!r} {raw!r} {problem}")
        seen.add(key)
        rows.append(Label(attribute, raw, count, value))
    return Labels(rows)
