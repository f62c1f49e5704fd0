"""Measures how the cost per token grows with sequences, context and steering configurations."""
