"""Training of categorisers: titles adapted without labels, then fine-tuned with them."""
