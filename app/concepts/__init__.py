"""Steering concepts: registry, files on disk, training state, tokenized examples. Knows no HTTP."""
