"""Picture locations below a root; links are tested with the bad catalogs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexing.catalog.locations import ImageRoot, LocationError


def test_plain_paths_resolve_below_the_root(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path)
    names = [
        "a.jpg",
        "in/a.jpg",
        "./in//a.jpg",
        "red:front.jpg",
        "ümlaut é.jpg",
        "~a.jpg",
        "a%2e.jpg",
    ]
    for name in names:
        assert root.locate(name) == tmp_path / name


def test_a_root_that_is_a_link_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert ImageRoot(tmp_path / "link").locate("a.jpg") == tmp_path / "real" / "a.jpg"


def test_urls(tmp_path: Path) -> None:
    assert ImageRoot(tmp_path, allow_urls=True).locate("HTTPS://shop.example/a.jpg?x=1") is None
    with pytest.raises(LocationError, match="--allow-urls"):
        ImageRoot(tmp_path).locate("https://shop.example/a.jpg")
    for location in ("http://", "http:a.jpg", "http:///a.jpg", "http://[::1/a.jpg"):
        with pytest.raises(LocationError, match="URL"):
            ImageRoot(tmp_path, allow_urls=True).locate(location)
    for location in ("ftp://h/a.jpg", "file:///a.jpg", "file:a.jpg", "data:,x", "gopher://h"):
        with pytest.raises(LocationError, match="locations are refused"):
            ImageRoot(tmp_path, allow_urls=True).locate(location)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["..", ".", "", "a", "out", "back", "/", "\\", "~", "C:", "etc", "\0"]),
        max_size=6,
    )
)
def test_no_path_leaves_the_root(tmp_path: Path, parts: list[str]) -> None:
    top = tmp_path / "root"
    if not top.exists():
        top.mkdir()
        (top / "out").symlink_to("..")
        (top / "back").symlink_to("out/root")
    try:
        path = ImageRoot(top).locate("/".join(parts))
    except LocationError:
        return
    assert path is not None
    real = os.path.realpath(path)
    assert real == str(path)
    assert os.path.commonpath([real, top]) == str(top)


def test_pictures_looked_up_by_id(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path)
    (tmp_path / "B1.jpeg").write_bytes(b"")
    (tmp_path / "B2").mkdir()
    for name in ("2.png", "1.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / "B2" / name).write_bytes(b"")
    (tmp_path / "B3").mkdir()
    assert root.find("B1") == ["B1.jpeg"]
    assert root.find("B2") == ["B2/1.jpg", "B2/2.png"]
    for missing in ("B3", "B4"):
        with pytest.raises(LocationError, match="no picture named by the id"):
            root.find(missing)
    with pytest.raises(LocationError, match=r"'\.\.' may not stand"):
        root.find("../B1")
