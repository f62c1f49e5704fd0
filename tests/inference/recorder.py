"""What captures steps where there are no CUDA graphs: it remembers what it was given, and does it again."""

from collections.abc import Callable

import torch

from inference.graphs import Replay


class Recorder:
    """A Capture that counts what is captured and replayed."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def __call__(self, act: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        self.num_captured += 1
        result = act()

        def replay() -> None:
            self.num_replayed += 1
            result.copy_(act())

        return replay, result
