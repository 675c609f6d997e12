"""The multi-image retrieval benchmark made of Amazon ESCI after MML-TP (Hu et al. 2024)."""
