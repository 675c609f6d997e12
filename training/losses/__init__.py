"""Losses between pictures and titles."""
