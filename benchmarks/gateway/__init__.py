"""Measures the cost of the gateway process under load, with an engine that answers at once."""
