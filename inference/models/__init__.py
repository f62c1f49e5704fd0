"""Models: finds and downloads weights, loads them, and wraps the transformers model for the engine."""
