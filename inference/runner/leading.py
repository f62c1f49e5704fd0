"""Loads a model as the leader of a group, or alone."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from inference.interface.config import EngineConfig
from inference.runner.loading import check_group
from inference.tensor_parallel.errors import BrokenGroupError
from inference.tensor_parallel.group import Group
from inference.tensor_parallel.leader import Leader

_log = logging.getLogger("tiller.worker")

_EXIT_STATUS = 71
_REPORT_SECONDS = 3.0
"""Time for the main thread to report that the start has failed."""


@contextmanager
def leading(
    config: EngineConfig, directory: Path, device: torch.device
) -> Iterator[tuple[Group, Leader | None]]:
    """While it lasts, this process loads its part of the model, and the followers load theirs.

    Yields this process's view of the group, and the leader if there are followers. They run until
    `Leader.close`. If the loading fails, they end at once. Raises ConfigError if several processes cannot
    share the model, and BrokenGroupError if a follower has ended.
    """
    size = config.tensor_parallel
    group = Group(0, size, device)
    if size == 1:
        yield group, None
        return
    check_group(config, directory)
    _log.info("starting %d more process%s for engine.tensor_parallel", size - 1, "es" * (size > 2))
    loss = _Loss()
    loss.leader = leader = Leader(config, directory, loss)
    try:
        group.join(leader.directory)
        yield group, leader
        leader.serve()
    except RuntimeError as error:  # perhaps because a follower has ended
        fault = leader.find_fault()
        leader.close()
        group.leave()
        if fault is None:
            raise
        raise BrokenGroupError(fault) from error
    except BaseException:
        leader.close()
        group.leave()
        raise


class _Loss:
    """Ends this process, and with it the group, when a follower is lost.

    The main thread may wait for the follower in an operation that never returns.
    """

    leader: Leader | None = None

    def __call__(self, fault: str) -> None:
        if self.leader is None or not self.leader.serving:
            time.sleep(_REPORT_SECONDS)
        if self.leader is not None and self.leader.stopped:
            return
        _log.critical("%s; the worker exits", fault)
        if self.leader is not None:
            self.leader.kill()
        os._exit(_EXIT_STATUS)
