"""Scripts that index a catalog as people do without shoplens, each a process of its own."""
