"""Training of attribute classifiers (CMA-CLIP)."""
