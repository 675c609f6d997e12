"""Attribute classifiers measured: CMA-CLIP, its ablations and simpler ones."""
