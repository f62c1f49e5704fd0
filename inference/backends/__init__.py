"""The back ends: torch operations, or Tiller's own kernels for CPUs and CUDA. `choice` selects one."""
