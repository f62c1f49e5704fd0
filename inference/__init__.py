"""The worker: knows token ids and tensors; no HTTP, no text."""
