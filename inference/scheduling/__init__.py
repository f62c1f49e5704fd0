"""Schedules sequences and assigns KV cache blocks to them. Imports no torch."""
