"""The Engine protocol and its worker processes: start, supervision, replicas. Knows no HTTP and no text."""
