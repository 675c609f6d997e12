"""Categorisers measured: what adaptation without labels adds where labels are few."""
