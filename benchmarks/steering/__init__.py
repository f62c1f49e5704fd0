"""Measures from outside whether steering works: a real server, plain transformers, other people's scorers."""
