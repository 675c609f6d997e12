"""Opens a catalog: the format, the profile and the columns are settled before any row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from indexing.catalog.catalog import Catalog, OnDuplicate
from indexing.catalog.drafts import column_key
from indexing.catalog.files import shown
from indexing.catalog.locations import ImageRoot
from indexing.catalog.profiles import PROFILES, recognise
from indexing.catalog.readers import CATALOG_SUFFIXES, catalog_suffix, open_table
from indexing.catalog.rejects import Reject, printable
from indexing.catalog.rows import Table
from indexing.errors import CatalogError

PROFILE_NAMES = ("auto", *PROFILES)
MAPPED_FIELDS = (
    *("id", "title", "description", "brand", "category"),
    *("price", "currency", "availability", "image"),
)
_SHOWN_COLUMNS = 30


def read_catalog(
    path: str | Path,
    profile: str = "auto",
    images_root: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    *,
    on_duplicate: OnDuplicate = "error",
    allow_urls: bool = False,
    on_reject: Callable[[Reject], None] | None = None,
) -> Catalog:
    """Opens a catalog: CSV, TSV, Parquet, JSON, JSON Lines, Google Merchant XML, each
    plain or gzip, or a folder of pictures.

    `profile` is one of PROFILE_NAMES; "auto" recognises it by the columns, and is the
    generic one where `mapping` (product field -> column, fields of MAPPED_FIELDS) is
    given. Picture paths are relative to `images_root`, by default the catalog's folder,
    and may not leave it; whether pictures exist and decode is not looked at. Each row or
    picture that cannot be used is handed to `on_reject` and counted. With `on_duplicate`
    "last" the catalog is read twice.

    Raises CatalogError for a file that cannot be read as a whole: missing, empty, of
    another format, or without the columns that the profile needs.
    """
    path, mapping = Path(path), dict(mapping or {})
    if "\0" in str(path):
        raise CatalogError(f"{shown(path)}: a path may not hold a NUL character")
    if profile not in PROFILE_NAMES:
        names = ", ".join(PROFILE_NAMES)
        raise CatalogError(f"no profile is named '{printable(profile)}'; choose one of {names}")
    if on_duplicate not in ("error", "first", "last"):
        raise CatalogError(f"--on-duplicate {printable(on_duplicate)}: choose error, first or last")
    table = open_table(path)
    if profile == "auto" and path.is_dir():
        _refuse_folder_around_catalog(path)
    if profile != "auto" and (profile == "folder") != path.is_dir():
        kind = "a file, not a folder of pictures" if profile == "folder" else "a folder"
        raise CatalogError(f"{shown(path)}: the profile {profile} cannot read {kind}")
    if profile == "auto":
        profile = "folder" if path.is_dir() else "generic" if mapping else recognise(table.columns)
    _refuse_empty(path, table)
    mapping = _checked_mapping(path, table, mapping)
    _check_columns(path, table, profile, mapping)
    root = ImageRoot(_images_folder(path, images_root), allow_urls)
    return Catalog(path, profile, table, root, mapping, on_duplicate, on_reject)


def _refuse_folder_around_catalog(path: Path) -> None:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CatalogError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    for name in names:
        if catalog_suffix(Path(name)) in CATALOG_SUFFIXES:
            raise CatalogError(
                f"{shown(path)}: the folder holds {printable(name)}; give that file, or "
                "--profile folder to take the folder's pictures for products"
            )


def _refuse_empty(path: Path, table: Table) -> None:
    first = next(table.rows(), None)
    if first is None:
        found = f" but the columns {_listed(table.columns)}" if table.columns else ""
        what = "the folder holds no pictures" if path.is_dir() else f"there are no rows{found}"
        raise CatalogError(f"{shown(path)}: {what}")
    if not table.columns:
        reason = first.problem.reason if first.problem else "it is empty"
        raise CatalogError(f"{shown(path)}: no row can be read; row {first.number}: {reason}")


def _checked_mapping(path: Path, table: Table, mapping: Mapping[str, str]) -> dict[str, str]:
    """The mapping with each column as the table spells it."""
    spelled = {column_key(column): column for column in reversed(table.columns)}
    checked = {}
    for field, column in mapping.items():
        if field not in MAPPED_FIELDS:
            fields = ", ".join(MAPPED_FIELDS)
            raise CatalogError(
                f"--map {printable(field)}={printable(column)}: no such field; choose of {fields}"
            )
        found = column if column in table.columns else spelled.get(column_key(column))
        if found is None:
            raise CatalogError(
                f"--map {field}={printable(column)}: {shown(path)} has no such column "
                f"(found: {_listed(table.columns)})"
            )
        checked[field] = found
    return checked


def _check_columns(path: Path, table: Table, profile: str, mapping: Mapping[str, str]) -> None:
    reader, keys = PROFILES[profile], set(map(column_key, table.columns))
    needed = {"id": reader.id, "image": reader.images}
    missing = [
        field
        for field, names in needed.items()
        if names and field not in mapping and keys.isdisjoint(names)
    ]
    if missing:
        wanted = " and ".join(f"{field} ({', '.join(needed[field][:6])})" for field in missing)
        ways = " ".join(f"--map {field}=COLUMN" for field in missing)
        raise CatalogError(
            f"{shown(path)}: the {profile} profile finds no column for {wanted} among "
            f"{_listed(table.columns)}; name it with {ways}"
        )


def _images_folder(path: Path, images_root: str | Path | None) -> Path:
    default = path if path.is_dir() else path.parent
    if images_root is None:
        return default
    root = Path(images_root)
    if not os.path.isdir(root):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        raise CatalogError(f"--images-root {shown(root)}: no such folder")
    if path.is_dir() and root.resolve() != path.resolve():
        raise CatalogError(
            f"--images-root {shown(root)}: a folder of pictures is its own images root"
        )
    return root


def _listed(columns: tuple[str, ...]) -> str:
    names = [printable(column)[:60] for column in columns[:_SHOWN_COLUMNS]]
    return ", ".join(names) + (", …" if len(columns) > _SHOWN_COLUMNS else "")
