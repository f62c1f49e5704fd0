"""The back end for NVIDIA GPUs. Imported only where it is chosen, since it imports Triton."""
