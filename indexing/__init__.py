"""Catalog to index: everything that serving and training stand on."""
