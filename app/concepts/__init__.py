"""Steering concepts: registry, files on disk, training state, examples as tokens. Knows no HTTP."""
