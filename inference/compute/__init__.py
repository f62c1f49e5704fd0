"""The tensors of one step: batch, attention, KV cache, sampling, captured graphs. Knows no requests."""
