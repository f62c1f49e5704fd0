"""The back ends: torch operations, or Tiller's own kernels for CPUs and CUDA. `selection` chooses one."""
