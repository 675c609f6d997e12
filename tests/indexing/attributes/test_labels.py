"""The label table: made, written, edited by people, and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexing.attributes.labels import Label, Labels, read_labels, suggest, write_labels
from indexing.errors import TrainingError

RAW = {
    "color": ["Red", "red", " RED ", "Navy Blue", "navy-blue", "Puce", "", "  "],
    "use": ["Home", "Home", "Sport", "Sport", "Sport"],
}


def test_spellings_are_joined_and_rare_values_become_other() -> None:
    labels = suggest(RAW, least=2)
    assert labels.rows == (
        Label("color", "RED", 3, "RED"),
        Label("color", "Navy Blue", 2, "Navy Blue"),
        Label("color", "Puce", 1, "other"),
        Label("use", "Sport", 3, "Sport"),
        Label("use", "Home", 2, "Home"),
    )
    assert labels.values("color") == ("RED", "Navy Blue", "other")
    assert labels.values("use") == ("Sport", "Home")


def test_what_a_raw_value_counts_as() -> None:
    labels = suggest(RAW, least=2)
    asked = ["rEd", "navy  blue", "puce", "chartreuse", "", " . "]
    assert [labels.value_of("color", raw) for raw in asked] == [
        "RED", "Navy Blue", "other", "other", None, None,
    ]  # fmt: skip
    # Also where nothing was rare: the merchant says something, and it is none of the values.
    assert labels.value_of("use", "Office") == "other"


def test_a_table_that_people_edited_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(suggest(RAW, least=1), path)
    text = path.read_text()
    assert text.splitlines()[0] == "attribute,raw,count,value"
    path.write_text(text.replace("Puce,1,Puce", "Puce,1,RED").replace("Home,2,Home", "Home,2,"))
    labels = read_labels(path)
    assert labels.value_of("color", "puce") == "RED"
    assert labels.value_of("use", "home") is None
    assert labels.values("color") == ("RED", "Navy Blue")
    assert labels.values("use") == ("Sport",)
    assert labels.ways_of_writing()["color"] == [
        ("RED", "RED"), ("RED", "RED"), ("Navy Blue", "Navy Blue"), ("Navy Blue", "Navy Blue"),
        ("RED", "RED"), ("Puce", "RED"),
    ]  # fmt: skip


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [Label("a,b", 'say "x"\n', 3, "ünï"), Label("a,b", "y", 0, "other")]
    write_labels(Labels(rows), tmp_path / "t.csv")
    assert list(read_labels(tmp_path / "t.csv").rows) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attribute,raw,count,value\ncolor,Red,many,Red\n", "line 2"),
        ("attribute,raw,value\ncolor,Red,Red\n", "'count'"),
        ("attribute,raw,count,value\ncolor,Red,1,Red\ncolor,RED,1,Blue\n", "line 3.*twice"),
        ("attribute,raw,count,value\ncolor, ,1,Red\n", "no raw value"),
    ],
)
def test_a_table_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(TrainingError, match=said):
        read_labels(path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere\.csv cannot be read"):
        read_labels(tmp_path / "nowhere.csv")


def test_an_attribute_needs_two_frequent_values() -> None:
    with pytest.raises(TrainingError, match=r"'color' has 3 values.*3 products or more"):
        suggest(RAW, least=3)
