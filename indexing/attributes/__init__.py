"""Attributes of products, such as colour: what merchants say, and what a model reads off them."""
