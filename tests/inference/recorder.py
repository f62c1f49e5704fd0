"""Captures steps for tests. On the CPU, a stand-in for CUDA keeps the call and runs it again."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference.compute.graphs import Act, Replay

aten = torch.ops.aten
_REFUSED = {
    # The host has to wait for their results.
    *(aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2),
    # It copies numbers from host memory that is not pinned.
    aten.lift_fresh,
}


class _NoWaiting(TorchDispatchMode):
    """Refuses operations that wait for a GPU, as CUDA does during a capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _REFUSED or _chooses_by_mask(func, args):
            raise RuntimeError(f"{func} is not permitted while a step is captured")
        return func(*args, **(kwargs or {}))


def _chooses_by_mask(func: Any, args: Any) -> bool:
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


class Recorder:
    """A Capture that counts captured and replayed steps."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def __call__(self, acts: Iterable[Act]) -> Iterator[Replay]:
        for replay in _capture(acts):
            self.num_captured += 1
            yield partial(self._replay, replay)

    def _replay(self, replay: Replay) -> None:
        self.num_replayed += 1
        replay()


def _capture(acts: Iterable[Act]) -> Iterator[Replay]:
    if torch.get_default_device().type == "cuda":
        from inference.backends.cuda.capture import capture

        yield from capture(acts)
        return
    for act in acts:
        with _NoWaiting():
            act()
        yield act
