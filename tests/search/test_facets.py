"""Counts of values against plain loops, and where they are counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from indexing.attributes.columns import Column
from indexing.attributes.vocabulary import ABSTAINED, Attribute
from indexing.errors import QueryError, WhereError
from search import engine as engine_module
from search.engine import SearchEngine
from search.facets import FacetCount, facet
from tests.search.test_attribute_order import made, shop_index

KIND = Attribute(
    name="kind", values=("mug", "shoe", "other", "hat"), prior=(0.25,) * 4, calibration={}
)


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([-1, 0, 1, 3]), st.booleans())),
)
def test_counts_against_plain_loops(products: list[tuple[int, int, bool]]) -> None:
    own = [said for said, _, _ in products]
    filled = [more if said == ABSTAINED else ABSTAINED for said, more, _ in products]
    empty = np.zeros((len(products), 1))
    column = Column(
        KIND, empty.astype(np.uint16), empty.astype(np.float16),
        np.array(own, np.int16), np.array(filled, np.int16),
    )  # fmt: skip
    rows = [row for row, (_, _, taken) in enumerate(products) if taken]
    expected: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    for row in rows:
        for value, counters in ((own[row], (expected,)), (filled[row], (expected, guessed))):
            for counter in counters:
                if value not in (ABSTAINED, 2):
                    counter[KIND.values[value]] += 1
    found = facet(column, np.array(rows, np.int64))
    assert [count.value for count in found] == sorted(
        expected, key=lambda value: (-expected[value], KIND.values.index(value))
    )
    assert {c.value: (c.count, c.filled) for c in found} == {
        value: (expected[value], guessed[value]) for value in expected
    }


def test_of_the_whole_index(tiny_encoder: Any) -> None:
    engine = made(tiny_encoder, None)
    # Given: r red, y blue, c other; filled in: m red, w blue.
    assert engine.facets(["color"]) == {
        "color": [FacetCount("Red", 2, 1), FacetCount("Navy Blue", 2, 1)]
    }
    assert engine.facets(["Color"], where="price > 2") == {"color": [FacetCount("Navy Blue", 2, 1)]}
    assert engine.facets([]) == {}
    with pytest.raises(QueryError, match=r"'colour' is no attribute .* did you mean color\?"):
        engine.facets(["colour"])
    with pytest.raises(WhereError):
        engine.facets(["color"], where="nothing > 2")


def test_of_the_first_products(tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(tiny_encoder, None)
    found = engine.search(text="red", k=1, facets=["color"])
    assert [hit.product_id for hit in found] == ["r"]
    assert found.facets == {"color": [FacetCount("Red", 2, 1), FacetCount("Navy Blue", 2, 1)]}
    monkeypatch.setattr(engine_module, "FACETED", 3)
    few = engine.search(text="red", facets=["color"])
    assert few.facets == {"color": [FacetCount("Red", 2, 1), FacetCount("Navy Blue", 1, 0)]}
    # What is chosen moves products, and takes none out of the counts.
    chosen = engine.search(text="red", facets=["color"], attributes={"color": "navy blue"})
    assert chosen.facets == few.facets
    filtered = engine.search(text="red", facets=["color"], where="price > 3", minus="cyan")
    assert filtered.facets == {"color": [FacetCount("Navy Blue", 1, 1)]}
    assert engine.search(text="red").facets == {}


def test_the_command(tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import typer

    from search.cli import search

    index = shop_index(tiny_encoder, None)
    monkeypatch.setattr(
        SearchEngine, "open", lambda _folder, **_: SearchEngine(index, tiny_encoder)
    )
    app = typer.Typer()
    app.command()(search)
    asked = ["shop", "--text", "red", "--facets", "color", "--attribute", "color = navy blue"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.exception
    assert shown.stdout.splitlines()[-1] == (
        "color: Red 2 (1 filled in), Navy Blue 2 (1 filled in)"
    )
    lines = CliRunner().invoke(app, [*asked, "--json", "--k", "2"]).stdout.splitlines()
    assert [json.loads(line)["product_id"] for line in lines] == ["y", "w"]
    assert json.loads(lines[0])["facets"]["color"][0] == {"value": "Red", "count": 2, "filled": 1}
    for wrong in (["color"], ["=red"], ["color="]):
        refused = CliRunner().invoke(app, ["shop", "--text", "red", "--attribute", *wrong])
        assert isinstance(refused.exception, QueryError)
    twice = ["--attribute", "color=red", "--attribute", "color=blue"]
    refused = CliRunner().invoke(app, ["shop", "--text", "red", *twice])
    assert "color was given before" in str(refused.exception)
