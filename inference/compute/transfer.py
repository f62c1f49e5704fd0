"""Copies between host and device: one copy for many arrays to the device, and back without waiting."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16  # bytes

Arrays = Mapping[str, NDArray[np.generic]]


class AsyncCopy:
    """A copy of tensors from device to host, which runs while the host goes on."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            self._tensors = tuple(map(_launch_copy, tensors))
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the host. Waits until the copy has ended, but not for work launched later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def upload(arrays: Arrays, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors on the device with the arrays' shapes and types. Never waits for the device.

    Copies all arrays at once, since each copy costs a launch.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays.values()]
    host = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu", pin_memory=torch.cuda.is_available())
    tensors = _carve(host, arrays, sizes)
    for name, array in arrays.items():
        tensors[name].copy_(torch.from_numpy(array))
    # torch keeps the pinned memory until the device has read it.
    return _carve(host.to(device, non_blocking=True), arrays, sizes)


def _carve(memory: torch.Tensor, arrays: Arrays, sizes: list[int]) -> dict[str, torch.Tensor]:
    """Views of `memory` with the arrays' shapes and types, one after the other."""
    tensors = {}
    for (name, array), part in zip(arrays.items(), torch.split(memory, sizes), strict=True):
        dtype = torch.from_numpy(array[:0]).dtype
        tensors[name] = part[: array.nbytes].view(dtype).view(array.shape)
    return tensors


def _launch_copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
