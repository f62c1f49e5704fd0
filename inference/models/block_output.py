"""Where the hidden states are in what a decoder block returns."""

from typing import Any

import torch
from transformers import PretrainedConfig


class BlockOutput:
    """A block returns its hidden states, alone or first in a tuple.

    Blocks of Gemma 3n return several versions of them, one after the other in a first dimension. The one that
    the next block's attention reads counts.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self._version: int | None = getattr(config, "altup_active_idx", None)

    def hidden(self, output: Any) -> torch.Tensor:
        """[N, T, hidden_size], a view."""
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first if self._version is None else first[self._version]

    def replaced(self, output: Any, hidden: torch.Tensor) -> Any:
        """The output with other hidden states. Gradients flow through them."""
        if self._version is not None:
            first = (output[0] if isinstance(output, tuple) else output).clone()
            first[self._version] = hidden
            hidden = first
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
