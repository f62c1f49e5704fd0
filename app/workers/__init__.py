"""Worker processes: start, supervision, liveness, replicas, the Engine protocol. Knows no HTTP, no text."""
