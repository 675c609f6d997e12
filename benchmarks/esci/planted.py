"""The cases that the generator plants, and the counts that a split must find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# What a picture is: a view of the product, or
#   again, resaved     its main picture once more, as the same bytes or compressed anew
#   copy               the picture before it, as the same bytes
#   common             the same bytes as in the case before
#   listed, unlisted   one of two site-wide placeholders; only the first is on the list
#   tiny, cut, absent  too small, cut short, or no file
View = Literal[
    "view", "again", "resaved", "copy", "common", "listed", "unlisted", "tiny", "cut", "absent"
]


@dataclass(frozen=True)
class Case:
    """A kind of product: its pictures, main first, and what becomes of them."""

    views: tuple[View, ...] = ()
    kept: int = 0  # pictures in the benchmark
    lost: dict[str, int] = field(default_factory=dict)  # fields of PictureCounts
    titled: bool = True
    same_title: bool = False  # as the case before, in other case and punctuation
    main: bool = True  # whether the first picture is called the main one
    promoted: bool = False
    extra_rows: dict[str, int] = field(default_factory=dict)  # fields of PictureCounts
    other_group: bool = True  # False: of one group with the case before


_TWO: tuple[View, View] = ("view", "view")
# Product i is CASES[i % len(CASES)]. Two thirds of the products are kept, with 2.7 pictures
# each: about what the paper has (710,000 of 1.2 million, 2.36).
CASES = (
    Case(_TWO, 2),
    Case(_TWO, 2, extra_rows={"repeated": 1}),
    Case((*_TWO, "view"), 3),
    Case(_TWO, 2),
    Case(_TWO, 2, same_title=True, other_group=False),
    Case((*_TWO, "view"), 3),
    Case(("view", "common"), 2, other_group=False),
    Case(("listed", *_TWO), 2, {"placeholders": 1}, promoted=True),
    Case(("view", "unlisted"), 0, {"shared": 1, "of_dropped_products": 1}),
    Case((*_TWO, "cut"), 2, {"broken": 1}),
    Case((*_TWO, "tiny"), 2, {"too_small": 1}),
    Case(("view", "again", "view"), 2, {"same_as_main": 1}),
    Case(("view", "resaved", "view"), 2, {"same_as_main": 1}),
    Case((*_TWO, "copy"), 2, {"same_as_other": 1}),
    Case((*_TWO, "absent"), 2, {"missing": 1}),
    Case(),
    Case(("view",), 0, {"of_dropped_products": 1}),
    Case(("view",) * 13, 11, {"beyond_ten": 2}),
    Case(_TWO, 2, main=False, promoted=True),
    Case(_TWO, titled=False),
    Case(extra_rows={"without_picture": 1}),
    Case(("view",), 0, {"of_dropped_products": 1}),
    Case(),
    Case(("view",), 0, {"of_dropped_products": 1}),
)
OTHER_LOCALES = ("es", "jp")


def other_products(products: int) -> int:
    """How many rows of other locales come with so many products."""
    return products // 2


def expected(products: int) -> dict[str, int]:
    """The counts of a split of so many generated products, whose names are fields of
    ProductCounts, PictureCounts and GroupCounts.

    They hold where `max_shared` is 2 or more and less than a 24th of the products.
    """
    counts = dict.fromkeys(
        [
            *("rows", "other_locale", "untitled", "usable"),
            *("picture_rows", "other_products", "named", "kept", "products", "groups", "promoted"),
        ],
        0,
    )
    counts["other_locale"] = other_products(products)
    counts["rows"] = products + other_products(products)
    for number, case in enumerate(CASES):
        times = len(range(number, products, len(CASES)))
        changes = {"picture_rows": len(case.views) + sum(case.extra_rows.values())}
        if case.titled:
            changes |= {"usable": 1, "named": len(case.views), "kept": case.kept}
            changes |= {"promoted": int(case.promoted), "products": int(case.kept > 1)}
            changes |= {"groups": int(case.kept > 1 and case.other_group)}
            changes |= case.lost | case.extra_rows
        else:
            changes |= {"untitled": 1, "other_products": len(case.views)}
        for name, change in changes.items():
            counts[name] = counts.get(name, 0) + times * change
    return counts
