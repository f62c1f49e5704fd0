"""CUDA graphs: what the device did once, done again at one launch."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from inference.compute.graphs import Replay


def capture(act: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """As `inference.compute.graphs.Capture` says. All graphs share their memory: they run one at a time."""
    current, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        act()  # compiles and allocates what is made at the first call
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        result = act()
    return graph.replay, result


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
