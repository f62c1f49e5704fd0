"""Runs steps on the model: cache size, checks after loading, forward, sampling, recovery. No scheduling."""
