"""The Triton kernels. Compile-time constants are in capitals; Triton allows no types for other arguments."""
