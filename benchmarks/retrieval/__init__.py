"""Retrieval figures: tasks, exact ranks, stored answers, scores, reports."""
