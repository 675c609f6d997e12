"""A catalog file or folder to a table of rows, by what the file is."""

from __future__ import annotations

from pathlib import Path

from indexing.catalog.delimited import delimited_table
from indexing.catalog.files import open_bytes, reading, shown
from indexing.catalog.folder import folder_table
from indexing.catalog.json_rows import json_table
from indexing.catalog.merchant_xml import xml_table
from indexing.catalog.rows import Table
from indexing.errors import CatalogError

_GZIP_SUFFIXES = frozenset({".gz", ".gzip"})
_DELIMITED = frozenset({".csv", ".tsv", ".tab"})
_JSON = frozenset({".json", ".jsonl", ".ndjson", ".jsonld"})
_XML = frozenset({".xml", ".rss", ".atom"})
_PARQUET = frozenset({".parquet", ".pq"})
CATALOG_SUFFIXES = _DELIMITED | _JSON | _XML | _PARQUET

_NO_CATALOGS = (
    (b"PK\x03\x04", "a zip or Excel file; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file; save the sheet as CSV"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture; give a catalog file or a folder of pictures"),
    (b"\xff\xd8\xff", "a picture; give a catalog file or a folder of pictures"),
)


def open_table(path: Path) -> Table:
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
    return _file_table(path, catalog_suffix(path), head)


def catalog_suffix(path: Path) -> str:
    """The suffix that tells the format, that of a `.gz` left aside."""
    name = path.with_suffix("") if path.suffix.lower() in _GZIP_SUFFIXES else path
    return name.suffix.lower()


def _file_table(path: Path, suffix: str, head: bytes) -> Table:
    if suffix in _PARQUET or head.startswith(b"PAR1"):
        from indexing.catalog.parquet import parquet_table  # pyarrow is slow to import

        return parquet_table(path)
    first = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")[:1]
    if suffix in _JSON or (suffix not in CATALOG_SUFFIXES and first in (b"{", b"[")):
        return json_table(path, suffix)
    if suffix in _XML or (suffix not in CATALOG_SUFFIXES and first == b"<"):
        return xml_table(path)
    return delimited_table(path, suffix)
