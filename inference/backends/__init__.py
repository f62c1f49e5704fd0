"""What computes: torch operations, or our kernels for CPUs and CUDA, chosen in one place."""
