"""One step's tensors: batch, attention, KV cache, sampling, captured graphs. Knows no requests."""
