"""CUDA graphs: captures the launches of a step, so that one launch replays them all."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from inference.compute.graphs import Replay


def capture(act: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """See `inference.compute.graphs.Capture`. All graphs share one memory pool: they run one at a time."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        act()  # warm-up: the first call compiles kernels and allocates workspaces
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        result = act()
    return graph.replay, result


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
