"""The processes that share a model, from the view of one of them: who they are, and what they agree on."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

_LOOPBACK = ("lo", "lo0")  # on Linux, on macOS
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_STORE = "store"
_TIMEOUT = timedelta(hours=2)
"""Long, because one process may load its part of a large model faster than another. Nothing waits for this
timeout while the model serves: StepWatch and the leader's watch find a process that hangs much sooner."""


@dataclass(frozen=True)
class Group:
    """A group of `size` processes. The leader has the number 0. In a group of one, nothing is exchanged."""

    number: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def lowest(self, value: int) -> int:
        """The lowest value of all processes. Each must call this."""
        if self.size == 1:
            return value
        values = torch.tensor([value], device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values)

    def all(self, holds: bool) -> bool:
        """Whether it holds in all processes. Each must call this."""
        return bool(self.lowest(int(holds)))

    def join(self, directory: Path) -> None:
        """Connects the processes. `directory` belongs to this group, and only this user can access it.

        The connections stay on the loopback interface. Returns once all processes have joined.
        """
        names = {name for _, name in socket.if_nameindex()}
        loopback = next((name for name in _LOOPBACK if name in names), None)
        for variable in _INTERFACES:
            if loopback is not None:
                os.environ.setdefault(variable, loopback)
        on_cuda = self.device.type == "cuda"
        if not on_cuda:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # transformers would prefer CUDA devices
        # A file and no TCP store, which would listen on all interfaces.
        store = dist.FileStore(str(directory / _STORE), self.size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=store,
            rank=self.number,
            world_size=self.size,
            timeout=_TIMEOUT,
            device_id=self.device if on_cuda else None,
        )

    def leave(self) -> None:
        """Forgets the other processes. With CUDA, only the end of the process frees what NCCL holds."""
        if self.device.type == "cpu" and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Group()
