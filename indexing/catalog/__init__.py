"""Catalog files to validated products."""
