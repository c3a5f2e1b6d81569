"""Distil the rankings of a large language model into a fast cross-encoder."""

__version__ = "0.1.0"
