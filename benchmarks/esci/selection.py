"""Which pictures of which products make the benchmark, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.esci.manifest import Options, PictureCounts
from benchmarks.esci.pictures import Pictures
from benchmarks.esci.scan import Facts
from indexing.errors import BenchmarkError
from indexing.messages import printable, shown
from indexing.phash import distance

MAX_AUX = 10  # auxiliary pictures a product, as in the paper
SAME_BITS = 4  # pHashes at most so far apart are one picture
_REASONS = 5


@dataclass(frozen=True)
class Selection:
    """Rows are sorted by product, the main picture first; `product` and `path` are [n]."""

    product: NDArray[np.int32]  # row of Products
    path: NDArray[np.int32]  # row of Paths and Facts
    kept: NDArray[np.int32]  # the distinct products, in order
    starts: NDArray[np.int64]  # [len(kept) + 1], where each one's pictures begin, and the end
    promoted: int  # products whose first picture is no main one in the sources
    too_few: int  # products without two distinct pictures
    counts: PictureCounts


def read_placeholders(path: Path) -> set[bytes]:
    """SHA-256 digests, one hex string a line; what follows a # is a comment.

    Raises BenchmarkError for any other line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BenchmarkError(f"--placeholders {shown(path)}: cannot be read ({why})") from error
    found = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            digest = bytes.fromhex(text)
        except ValueError:
            digest = b""
        if text and len(digest) != 32:
            raise BenchmarkError(
                f"--placeholders {shown(path)}: line {number} is no SHA-256 in hex: "
                f"'{printable(text)}'"
            )
        if text:
            found.add(digest)
    return found


def select(
    pictures: Pictures, facts: Facts, products: int, placeholders: set[bytes], options: Options
) -> Selection:
    """Drop what is not to be seen, what is there twice, and products without two pictures.

    Of a product's pictures, in the order main, rank, path, each one is dropped that looks
    like one before it; then the first is the main one and at most MAX_AUX more are kept.

    Args:
        products: How many products there are.
        placeholders: SHA-256 digests of files that are no pictures of a product.
    """
    path = pictures.path
    left = np.arange(len(path))
    found: dict[str, int] = {}

    def drop(name: str, bad: NDArray[np.bool_]) -> None:
        nonlocal left
        found[name] = int(bad.sum())
        left = left[~bad]

    missing = _top(facts, path[facts.missing[path]])
    drop("missing", facts.missing[path[left]])
    broken = facts.reason[path[left]] > 0
    broken_reasons = _top(facts, path[left[broken]], form=lambda text: re.sub(r"[0-9]+", "#", text))
    drop("broken", broken)
    side = np.minimum(facts.width, facts.height)
    drop("too_small", side[path[left]] < options.min_side)
    # Two files with the same 64 first bits of SHA-256 are the same file, but for a chance of
    # one in ten million among three million pictures.
    keys = facts.sha256[:, :8].copy().view("<u8").ravel() if len(facts.sha256) else facts.phash
    drop("placeholders", _listed(facts, keys, path[left], placeholders))
    drop("shared", _shared(keys[path[left]], pictures.product[left], options.max_shared))
    outcome = _distinct(pictures.product[left], keys[path[left]], facts.phash[path[left]])
    for name, code in _OUTCOMES.items():
        found[name] = int((outcome == code).sum())
    left = left[outcome == _KEPT]
    numbers = np.bincount(pictures.product[left], minlength=products)
    drop("of_dropped_products", numbers[pictures.product[left]] < 2)
    product = pictures.product[left]
    kept, starts = np.unique(product, return_index=True)
    return Selection(
        product=product,
        path=path[left],
        kept=kept.astype(np.int32),
        starts=np.append(starts, len(product)).astype(np.int64),
        promoted=int((~pictures.main[left[starts]]).sum()),
        too_few=products - len(kept),
        counts=pictures.counts.model_copy(
            update={
                **found,
                "kept": len(left),
                "missing_reasons": missing,
                "broken_reasons": broken_reasons,
            }
        ),
    )


def _top(facts: Facts, path: NDArray[np.int32], form: Callable[[str], str] = str) -> dict[str, int]:
    """The most frequent reasons in the given form, the most frequent first."""
    counter: Counter[str] = Counter()
    numbers = np.bincount(facts.reason[path], minlength=len(facts.reasons))
    for code in np.flatnonzero(numbers):
        counter[form(facts.reasons[code])] += int(numbers[code])
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:_REASONS])


def _listed(
    facts: Facts, keys: NDArray[np.uint64], path: NDArray[np.int32], placeholders: set[bytes]
) -> NDArray[np.bool_]:
    listed = np.array([int.from_bytes(digest[:8], "little") for digest in placeholders], np.uint64)
    bad = np.isin(keys[path], listed)
    for row in np.flatnonzero(bad):
        bad[row] = facts.sha256[path[row]].tobytes() in placeholders
    return bad


def _shared(keys: NDArray[np.uint64], product: NDArray[np.int32], most: int) -> NDArray[np.bool_]:
    """Rows whose file belongs to more than `most` products."""
    order = np.lexsort((product, keys))
    key, owner = keys[order], product[order]
    new_key = np.ones(len(key), bool)
    new_key[1:] = key[1:] != key[:-1]
    new = new_key.copy()
    new[1:] |= owner[1:] != owner[:-1]
    run = np.cumsum(new_key) - 1
    owners = np.bincount(run, weights=new) if len(run) else np.empty(0)
    bad = np.empty(len(keys), bool)
    bad[order] = owners[run] > most
    return bad


_KEPT = 0
_OUTCOMES = {"same_as_main": 1, "same_as_other": 2, "beyond_ten": 3}


def _distinct(
    product: NDArray[np.int32], keys: NDArray[np.uint64], hashes: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """For each row, sorted by product, _KEPT or one of _OUTCOMES.

    All products go at once: the first picture of each, then the second of each, and so on,
    each compared with those that were kept before it.
    """
    outcome = np.zeros(len(product), np.int8)
    _, first, number = np.unique(product, return_index=True, return_counts=True)
    slots = np.full((1 + MAX_AUX, len(first)), -1, np.int32)  # rows kept of each product
    filled = np.zeros(len(first), np.int8)
    active = np.arange(len(first))
    turn = 0
    while len(active := active[number[active] > turn]):
        rows = first[active] + turn
        for place in range(1 + MAX_AUX):
            other = slots[place, active]
            same = (keys[rows] == keys[other]) | (
                distance(hashes[rows], hashes[other]) <= SAME_BITS
            )
            same &= (other >= 0) & (outcome[rows] == _KEPT)
            outcome[rows[same]] = _OUTCOMES["same_as_other" if place else "same_as_main"]
        full = (filled[active] > MAX_AUX) & (outcome[rows] == _KEPT)
        outcome[rows[full]] = _OUTCOMES["beyond_ten"]
        new = outcome[rows] == _KEPT
        slots[filled[active[new]], active[new]] = rows[new]
        filled[active[new]] += 1
        turn += 1
    return outcome
