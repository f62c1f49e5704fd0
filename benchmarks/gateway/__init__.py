"""What the gateway itself costs: its own process under load, over an engine that answers at once."""
