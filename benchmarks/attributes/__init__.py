"""Classifiers of attributes, measured."""
