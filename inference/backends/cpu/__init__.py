"""Kernels of our own for CPUs, compiled for the processor that is found, and what uses them."""
