"""Which loss for products? All of them on the same model, data and budget."""
