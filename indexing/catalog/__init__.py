"""Catalog files to validated products."""

from __future__ import annotations

from indexing.catalog.catalog import Catalog, Counts, OnDuplicate
from indexing.catalog.opening import MAPPED_FIELDS, PROFILE_NAMES, read_catalog
from indexing.catalog.product import Product, ProductImage
from indexing.catalog.rows import Reject

__all__ = [
    "MAPPED_FIELDS",
    "PROFILE_NAMES",
    "Catalog",
    "Counts",
    "OnDuplicate",
    "Product",
    "ProductImage",
    "Reject",
    "read_catalog",
]
