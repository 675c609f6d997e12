"""Fine-tuning encoders on a catalog."""
