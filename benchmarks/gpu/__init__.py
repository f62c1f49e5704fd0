"""Compares the engine's speed with the limits of a GPU."""
