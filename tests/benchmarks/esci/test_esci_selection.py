"""Which pictures stay, against a plain rereading of the rules, product by product."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.esci.manifest import Options, PictureCounts
from benchmarks.esci.pictures import Pictures
from benchmarks.esci.scan import Fact, Facts
from benchmarks.esci.selection import Selection, read_placeholders, select
from indexing.errors import BenchmarkError

# A file is (hash, look, side): files with one hash are one file, and two looks are one picture
# where they differ in at most four bits.
File = tuple[int, int, int]
LOOKS = [0, 0b1111, 0b11111, 2**64 - 1, 2**64 - 2, 0xFF00FF00FF00FF00]
OPTIONS = Options(min_side=100, max_shared=2)
LISTED = bytes([9]) * 32


def sha(number: int) -> bytes:
    return bytes([number]) * 32


def selected(products: list[list[File | None]]) -> Selection:
    """Products of files, in order of rank; None is missing."""
    flat = [(row, file) for row, own in enumerate(products) for file in own]
    facts = Facts(len(flat))
    for row, (_, file) in enumerate(flat):
        if file is None:
            facts.put(row, Fact(error="gone", lasting=False))
        elif file[2] == 0:
            facts.put(row, Fact(error=f"broken at {row}"))
        else:
            facts.put(row, Fact(sha(file[0]), LOOKS[file[1]], file[2], file[2] + 7))
    owner = np.array([row for row, _ in flat], np.int32)
    order = np.arange(len(flat), dtype=np.int32)
    counts = PictureCounts(
        rows=0, unreadable=0, other_products=0, without_picture=0, repeated=0, named=len(flat)
    )
    main = np.array([i == 0 or owner[i] != owner[i - 1] for i in range(len(flat))], bool)
    pictures = Pictures(owner, main, order, counts, owner[:0], pa.array([], pa.string()))
    return select(pictures, facts, len(products), {LISTED}, OPTIONS)


def plain(products: list[list[File | None]]) -> tuple[list[list[int]], Counter[str]]:
    """Numbers of the kept pictures of each product, and how many went which way."""
    why: Counter[str] = Counter()
    usable: list[list[tuple[int, File]]] = []
    number = -1
    for own in products:
        usable.append([])
        for file in own:
            number += 1
            if file is None:
                why["missing"] += 1
            elif file[2] == 0:
                why["broken"] += 1
            elif file[2] < 100:
                why["too_small"] += 1
            elif sha(file[0]) == LISTED:
                why["placeholders"] += 1
            else:
                usable[-1].append((number, file))
    owners = Counter(key for own in usable for key in {file[0] for _, file in own})
    kept: list[list[int]] = []
    for own in usable:
        chosen: list[tuple[int, File]] = []
        for place, file in own:
            if owners[file[0]] > 2:
                why["shared"] += 1
                continue
            twins = [
                other[0] == file[0] or (LOOKS[other[1]] ^ LOOKS[file[1]]).bit_count() <= 4
                for _, other in chosen
            ]
            if any(twins):
                why["same_as_main" if twins[0] else "same_as_other"] += 1
            elif len(chosen) == 11:
                why["beyond_ten"] += 1
            else:
                chosen.append((place, file))
        if len(chosen) < 2:
            why["of_dropped_products"] += len(chosen)
            chosen = []
        why["kept"] += len(chosen)
        kept.append([place for place, _ in chosen])
    return kept, why


FILES = st.one_of(
    st.none(),
    st.tuples(
        st.integers(0, 9), st.integers(0, len(LOOKS) - 1), st.sampled_from([0, 99, 100, 300])
    ),
)


@given(st.lists(st.lists(FILES, max_size=6), max_size=6))
def test_the_rules_read_plainly_give_the_same(products: list[list[File | None]]) -> None:
    found = selected(products)
    kept, why = plain(products)
    assert found.kept.tolist() == [row for row, own in enumerate(kept) if own]
    assert found.path.tolist() == [place for own in kept for place in own]
    assert np.diff(found.starts).tolist() == [len(own) for own in kept if own]
    assert found.too_few == sum(not own for own in kept)
    counts = found.counts.model_dump(include=set(why))
    assert counts == dict(why)
    assert sum(why.values()) == found.counts.named


@pytest.mark.parametrize(("look", "kept"), [(0, 0), (1, 0), (2, 2)])
def test_four_bits_make_one_picture_and_five_make_two(look: int, kept: int) -> None:
    assert selected([[(1, 0, 200), (2, look, 200)]]).counts.kept == kept


def test_at_most_ten_auxiliary_pictures() -> None:
    facts = Facts(14)
    rng = np.random.default_rng(0)
    for row in range(14):
        facts.put(row, Fact(rng.bytes(32), int(rng.integers(2**63)), 200, 200))
    owner = np.zeros(14, np.int32)
    counts = PictureCounts(
        rows=0, unreadable=0, other_products=0, without_picture=0, repeated=0, named=14
    )
    order = np.arange(14, dtype=np.int32)
    pictures = Pictures(owner, order == 0, order, counts, owner[:0], pa.array([], pa.string()))
    found = select(pictures, facts, 1, set(), OPTIONS)
    assert found.path.tolist() == list(range(11))
    assert found.counts.beyond_ten == 3


def test_the_next_picture_takes_the_place_of_a_main_one_that_is_gone() -> None:
    found = selected([[None, (1, 0, 200), (2, 3, 200)], [(3, 0, 200), (4, 3, 200)]])
    assert found.path.tolist() == [1, 2, 3, 4]
    assert found.promoted == 1


def test_reasons_are_summed_up_without_their_numbers() -> None:
    found = selected([[None, (1, 0, 0), (2, 0, 0)], [None, (3, 0, 200), (4, 3, 200)]])
    assert found.counts.missing_reasons == {"gone": 2}
    assert found.counts.broken_reasons == {"broken at #": 2}


def test_placeholders_are_read(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# none\n\n{'09' * 32}  # no picture\n{'AB' * 32}\n")
    assert read_placeholders(path) == {LISTED, bytes([0xAB]) * 32}


@pytest.mark.parametrize("line", ["abc", "09" * 31, "zz" * 32])
def test_a_placeholder_that_is_no_sha256_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{'09' * 32}\n{line}\n")
    with pytest.raises(BenchmarkError, match="line 2 is no SHA-256"):
        read_placeholders(path)


def test_a_list_of_placeholders_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_placeholders(tmp_path / "gone.txt")
