"""What the engine uses on NVIDIA GPUs. Imported only where it is chosen: Triton comes with torch there."""
