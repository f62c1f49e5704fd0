"""The worker process: runs a model on token ids. Knows no HTTP and no text."""
