"""The back end for NVIDIA GPUs: Triton kernels and CUDA graphs. Import it only on a CUDA host."""

import torch

from inference.backends.backend import Backend
from inference.backends.cuda.capture import capture
from inference.backends.cuda.fusion import fuse
from inference.backends.cuda.layers import check, steer
from inference.backends.cuda.paged_attention import attend
from inference.backends.cuda.sampling import weigh


def load(device: torch.device) -> Backend:
    """Raises what Triton raises if it cannot compile or run here, and ValueError if a result is wrong."""
    check(device)
    return Backend(attend=attend, fuse=fuse, weigh=weigh, steer=steer, capture=capture)
