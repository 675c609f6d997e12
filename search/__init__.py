"""Answers: queries, filters, the engine."""
