"""Kernels in Triton's language, which is not quite Python: constants in capitals, no types."""
