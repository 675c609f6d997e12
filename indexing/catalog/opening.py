"""Opens a catalog: the format, the profile and the columns are settled before any row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

from indexing.catalog.catalog import Catalog, OnDuplicate
from indexing.catalog.delimited import delimited_table
from indexing.catalog.drafts import column_key
from indexing.catalog.files import open_bytes, reading
from indexing.catalog.folder import folder_table
from indexing.catalog.json_rows import json_table
from indexing.catalog.locations import ImageRoot
from indexing.catalog.merchant_xml import xml_table
from indexing.catalog.profiles import PROFILES, recognise
from indexing.catalog.rows import COLUMNS_FROM, LOOKED_AT, Reject, Table
from indexing.errors import CatalogError
from indexing.messages import printable, shown

PROFILE_NAMES = ("auto", *PROFILES)
MAPPED_FIELDS = (
    *("id", "title", "description", "brand", "category"),
    *("price", "currency", "availability", "image"),
)
_SHOWN_COLUMNS = 30

_GZIP_SUFFIXES = frozenset({".gz", ".gzip"})
_DELIMITED = frozenset({".csv", ".tsv", ".tab"})
_JSON = frozenset({".json", ".jsonl", ".ndjson", ".jsonld"})
_XML = frozenset({".xml", ".rss", ".atom"})
_PARQUET = frozenset({".parquet", ".pq"})
_CATALOG_SUFFIXES = _DELIMITED | _JSON | _XML | _PARQUET

_NO_CATALOGS = (
    (b"PK\x03\x04", "a zip or Excel file; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file; save the sheet as CSV"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture; give a catalog file or a folder of pictures"),
    (b"\xff\xd8\xff", "a picture; give a catalog file or a folder of pictures"),
)


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

    `profile` is one of PROFILE_NAMES; "auto" recognises it by the columns and takes the
    generic one where they tell nothing. `mapping` (product field -> column, fields of
    MAPPED_FIELDS) names columns in place of those of the profile. Picture paths are
    relative to `images_root`, by default the catalog's folder, and may not leave it;
    whether pictures exist and decode is not looked at. Each row, picture or field that
    cannot be used is handed to `on_reject` and counted. With `on_duplicate` "last" the
    catalog is read twice.

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
    table = _open_table(path)
    if profile == "auto" and path.is_dir():
        _refuse_folder_around_catalog(path)
    if profile != "auto" and (profile == "folder") != path.is_dir():
        kind = "a file, not a folder of pictures" if profile == "folder" else "a folder"
        raise CatalogError(f"{shown(path)}: the profile {profile} cannot read {kind}")
    if profile == "auto":
        profile = "folder" if path.is_dir() else recognise(table.columns)
    _refuse_empty(path, table)
    mapping = _checked_mapping(path, table, mapping)
    _check_columns(path, table, profile, mapping)
    root = ImageRoot(_images_folder(path, images_root), allow_urls)
    return Catalog(path, profile, table, root, mapping, on_duplicate, on_reject)


def _open_table(path: Path) -> Table:
    """The rows of the catalog at `path`. Raises CatalogError where it cannot be read."""
    with reading(path):
        # stat, unlike is_dir, says why a path cannot be reached.
        path.stat()
    if path.is_dir():
        return folder_table(path)
    if not path.is_file():
        raise CatalogError(f"{shown(path)}: neither a file nor a folder")
    with reading(path), open_bytes(path) as stream:
        head = stream.peek(64)[:64]
    if not head:
        raise CatalogError(f"{shown(path)}: the file is empty")
    for mark, what in _NO_CATALOGS:
        if head.startswith(mark):
            raise CatalogError(f"{shown(path)}: this is {what}")
    return _file_table(path, _catalog_suffix(path), head)


def _catalog_suffix(path: Path) -> str:
    """The suffix that tells the format, that of a `.gz` left aside."""
    name = path.with_suffix("") if path.suffix.lower() in _GZIP_SUFFIXES else path
    return name.suffix.lower()


def _file_table(path: Path, suffix: str, head: bytes) -> Table:
    if suffix in _PARQUET or head.startswith(b"PAR1"):
        from indexing.catalog.parquet import parquet_table  # pyarrow is slow to import

        return parquet_table(path)
    first = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")[:1]
    if suffix in _JSON or (suffix not in _CATALOG_SUFFIXES and first in (b"{", b"[")):
        return json_table(path, suffix)
    if suffix in _XML or (suffix not in _CATALOG_SUFFIXES and first == b"<"):
        return xml_table(path)
    return delimited_table(path, suffix)


def _refuse_folder_around_catalog(path: Path) -> None:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CatalogError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    for name in names:
        if _catalog_suffix(Path(name)) in _CATALOG_SUFFIXES:
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
    checked = {}
    for field, column in mapping.items():
        if field not in MAPPED_FIELDS:
            fields = ", ".join(MAPPED_FIELDS)
            raise CatalogError(
                f"--map {printable(field)}={printable(column)}: no such field; choose of {fields}"
            )
        found = _spelled(table, column)
        if found is None:
            raise CatalogError(
                f"--map {field}={printable(column)}: {shown(path)} has no such column "
                f"(found: {_listed(table.columns)})"
            )
        checked[field] = found
    return checked


def _spelled(table: Table, column: str) -> str | None:
    """The column as the table spells it, None where it is not there.

    Without a header, rows are searched for it; where no end is seen of rows without it,
    it is taken on trust that a later one has it.
    """
    found = _among(table.columns, column)
    if found is not None or table.whole:
        return found
    rows = table.rows()
    for row in islice(rows, LOOKED_AT):
        found = _among(row.cells, column)
        if found is not None:
            return found
    return None if next(rows, None) is None else column


def _among(columns: Iterable[str], column: str) -> str | None:
    names = list(columns)
    key = column_key(column)
    alike = (name for name in names if column_key(name) == key)
    return column if column in names else next(alike, None)


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
        seen = "" if table.whole else f" of the first {COLUMNS_FROM} rows that can be read"
        raise CatalogError(
            f"{shown(path)}: the {profile} profile finds no column for {wanted} among "
            f"{_listed(table.columns)}{seen}; name it with {ways}"
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
