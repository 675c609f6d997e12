"""A folder of pictures to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from indexing.catalog.files import reading
from indexing.catalog.locations import is_picture_name
from indexing.catalog.rows import Row, Table, broken
from indexing.durable import LOCK


def folder_table(path: Path) -> Table:
    """The table of a folder: each folder below it that holds pictures is a product.

    A product's id is its folder's path from the top (for a direct sub-folder its name),
    its title the folder's name. A picture directly in `path` is a product of its own,
    named by the file name without suffix. Hidden files, files that are no pictures and
    folders that hold an index are passed over; all is in order of names.
    """
    return Table(("id", "title", "images"), lambda: _rows(path))


def _rows(top: Path) -> Iterator[Row]:
    number = 0
    with reading(top):
        waiting = _entries(top)
    while waiting:
        entry = waiting.pop()
        number += 1
        name = str(entry.relative_to(top))
        if not entry.is_dir():
            yield _row(number, str(PurePosixPath(name).with_suffix("")), [name])
            continue
        if entry.is_symlink():
            yield broken(number, "images", name, "a link to a folder is not followed")
            continue
        try:
            inner = _entries(entry)
        except OSError as error:
            yield broken(number, "images", name, f"cannot be read ({error.strerror})")
            continue
        folders = [path for path in inner if path.is_dir()]
        pictures = [f"{name}/{path.name}" for path in reversed(inner) if not path.is_dir()]
        waiting += folders
        if pictures:
            yield _row(number, name, pictures)
        elif folders:
            number -= 1  # only a level of the tree
        else:
            yield broken(number, "images", name, "the folder holds no pictures")


def _entries(folder: Path) -> list[Path]:
    """Pictures and folders, the last name first, as a stack wants them."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    wanted = (path for path in found if is_picture_name(path.name) or path.is_dir())
    # An index may be kept beside the pictures that it is made of.
    pictures = (path for path in wanted if not (path / LOCK).exists())
    return sorted(pictures, key=lambda path: path.name, reverse=True)


def _row(number: int, name: str, pictures: list[str]) -> Row:
    try:
        name.encode()
    except UnicodeEncodeError:
        return broken(number, "id", name, "the name is not UTF-8; rename it")
    # As mappings, so that no name is taken for a list of several.
    images = [{"path": picture} for picture in pictures]
    return Row(number, {"id": name, "title": PurePosixPath(name).name, "images": images})
