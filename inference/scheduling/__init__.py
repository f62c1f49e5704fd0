"""Which sequences the next step computes, and which KV cache blocks they hold. Imports no torch."""
