"""Training of classifiers that read attributes of products off pictures and titles."""
