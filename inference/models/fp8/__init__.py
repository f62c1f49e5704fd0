"""Linear layers with FP8 weights (8-bit floats, e4m3), and how to load them from a checkpoint."""
