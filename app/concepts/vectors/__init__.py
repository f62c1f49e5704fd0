"""Steering vectors as files: Tiller's own, and those that other tools make. Knows no HTTP and no engine."""
