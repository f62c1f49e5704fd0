"""The CPU back end: C++ kernels, compiled for this machine's processor, and the modules that call them."""
