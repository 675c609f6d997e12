"""Train, validation and test by normalised title, so that no title is on both sides."""

from __future__ import annotations

from collections.abc import Sequence

Mark = tuple[int, str]  # a kind and a value, such as (0, "red mug") for a title


def join(rows: Sequence[Sequence[Mark]]) -> list[Mark]:
    """Connected components: rows with a mark in common are joined, and chains of such rows.

    Each row has at least one mark. The answer for a row is the smallest mark of its
    component, so it does not depend on the order of the rows.
    """
    above: dict[Mark, Mark] = {}

    def root(mark: Mark) -> Mark:
        while (parent := above.setdefault(mark, mark)) != mark:
            above[mark] = above[parent]  # path halving keeps the way up short
            mark = above[mark]
        return mark

    for marks in rows:
        roots = [root(mark) for mark in marks]
        lowest = min(roots)
        for other in roots:
            above[other] = lowest
    return [root(marks[0]) for marks in rows]
