"""CUDA graphs: captures the launches of a step, so that one launch replays them all."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from inference.compute.graphs import Act, Replay


def capture(acts: Iterable[Act]) -> Iterator[Replay]:
    """See `inference.compute.graphs.Capture`.

    All graphs of a call share one memory pool, because they run one at a time. They share one stream, because
    cuBLAS keeps a workspace for each stream. The pool lives as long as one of its graphs.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with _without_garbage_collection():
        for act in acts:
            current = torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                act()  # the first call compiles kernels and allocates workspaces
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                act()
            yield graph.replay


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collecting an old graph or event calls CUDA, which would make a capture fail."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
