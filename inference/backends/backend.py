"""A back end: the set of operations that the engine uses for one model on one device."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from inference.compute.attention import Attend
from inference.compute.graphs import Capture
from inference.compute.sampling.operations import SamplingOperations
from inference.steering.injection import SteeringOperations


class KernelError(Exception):
    """The kernels cannot be compiled, loaded or used here. The message is one line for the operator."""


@dataclass(frozen=True)
class Backend:
    """Each field is one operation. The defaults are torch's own operations, which work on every device."""

    attend: Attend | None = None
    """Attention that reads the paged KV cache in place. None: SDPA over gathered keys and values."""
    fuse: Callable[[nn.Module], None] | None = None
    """Changes a model in place so that it computes the same with fewer operations. None: no change."""
    quantize: Callable[[nn.Module], None] | None = None
    """Changes a model in place so that its linear layers compute with integers. None: not available."""
    quantized_cache_dtype: torch.dtype | None = None
    """The dtype of keys and values in the cache of a quantized model. `attend` must be able to read it. None:
    the model's own."""
    sampling: SamplingOperations = field(default_factory=SamplingOperations)
    """The operations on logits of the sampler: greedy choice, weights, top_k and top_p, random choice, top
    log probabilities."""
    steering: SteeringOperations = field(default_factory=SteeringOperations)
    """The operations on hidden states that steer and read them."""
    capture: Capture | None = None
    """Captures a decode step so that it can be replayed. None: every step launches each operation."""


TORCH = Backend()
