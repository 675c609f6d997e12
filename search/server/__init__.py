"""`shoplens serve`: search over HTTP. `app.py` puts the parts together."""
