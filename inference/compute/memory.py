"""Large tensors of zeros on a CPU, whose memory the system provides later. So a process starts sooner."""

import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

_LARGE = 2**20
"""Bytes. Below, the system's own way is as good."""

_MADV_POPULATE_WRITE = 23  # see madvise(2); Linux 5.14 and later
_PIECE = 64 * 2**20
"""Bytes that are asked for at once, so that other threads' requests to the system do not wait for long."""


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros [shape]. If they are large and on a CPU, the system provides each page when it is used first.

    `provide` lets it do so before. Such a tensor begins at the begin of a page.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE:
        return torch.zeros(*shape, dtype=dtype, device=device)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system may have no large pages
            area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=dtype).view(*shape)


def provide(tensors: Sequence[torch.Tensor]) -> None:
    """Begins to ask the system for the tensors' memory, and returns at once. Does not change what they hold.

    Then no request has to wait for it, and the process has its memory before others take it. Does nothing for
    other devices, and if the system cannot do this.
    """
    kept = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if kept and sys.platform == "linux":
        threading.Thread(target=_provide, args=(kept,), name="memory", daemon=True).start()


def _provide(tensors: list[torch.Tensor]) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for tensor in tensors:
        begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.data_ptr() + tensor.nbytes
        for start in range(begin, end, _PIECE):
            if madvise(start, min(_PIECE, end - start), _MADV_POPULATE_WRITE):
                return
