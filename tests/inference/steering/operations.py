"""The reference for modes, scopes and readings: plain transformers with hooks in float64."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from inference.interface.requests import GenerationRequest, SteeringMode, SteeringScope
from inference.steering.directions import Direction
from tests.inference.conftest import (
    Result,
    generate,
)
from tests.inference.steering.conftest import (
    added_vectors,
    copied,
    make_direction,
    random_tokens,
    steered_driver,
)

Change = Callable[[torch.Tensor], torch.Tensor]
"""Changes activations [..., hidden_size]."""

CONCEPTS = {
    "kind": make_direction(1, 0.5, (1,)),
    "rude": make_direction(2, 0.6, (0,)),
    "terse": make_direction(3, 0.4, (0, 1)),
    "group": make_direction(4, 0.5, (0, 1, 2), down_scale=0.5, reading_block=2, reading_range=(3.0, 1.0)),
}
PROMPT = random_tokens(11, 21)


@contextmanager
def changing_plainly(
    model: PreTrainedModel, changes: Mapping[int, Change], steered: Callable[[int], bool]
) -> Iterator[None]:
    """Changes the output of decoder blocks at the positions that are `steered`, during one generation."""
    handles = [
        model.model.layers[block].register_forward_hook(_change_at(change, steered))
        for block, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _change_at(change: Change, steered: Callable[[int], bool]) -> Callable[..., object]:
    start = 0

    def hook(block: nn.Module, args: object, output: object) -> object:
        nonlocal start
        output, hidden = copied(output)
        count = hidden.shape[1]
        positions = [i for i in range(count) if start + i > 0 and steered(start + i)]
        hidden[:, positions] = change(hidden[:, positions].double().cpu()).to(hidden)
        start += count
        return output

    return hook


def ablating(names: list[str], strength: float = 1.0) -> dict[int, Change]:
    """Scales the component along each direction by 1 - strength, solved as a linear system."""
    return _setting(names, lambda block, components: (1 - strength) * components)


def clamping(names: list[str], strength: float) -> dict[int, Change]:
    """Sets the component along each direction to what the strength adds."""

    def target(block: int, components: torch.Tensor) -> torch.Tensor:
        present = [CONCEPTS[name] for name in names if block in CONCEPTS[name].blocks]
        lengths = [direction.lengths[direction.blocks.index(block)] for direction in present]
        return (strength * torch.tensor(lengths, dtype=torch.float64, device="cpu")).expand_as(components)

    return _setting(names, target)


def _setting(names: list[str], target: Callable[[int, torch.Tensor], torch.Tensor]) -> dict[int, Change]:
    blocks = sorted({block for name in names for block in CONCEPTS[name].blocks})
    return {block: _set_components(names, block, target) for block in blocks}


def _set_components(
    names: list[str], block: int, target: Callable[[int, torch.Tensor], torch.Tensor]
) -> Change:
    present = [CONCEPTS[name] for name in names if block in CONCEPTS[name].blocks]
    units = torch.from_numpy(
        np.stack([direction.units[direction.blocks.index(block)] for direction in present])
    ).double()

    def change(hidden: torch.Tensor) -> torch.Tensor:
        components = hidden @ units.T
        wanted = target(block, components)
        return hidden + torch.linalg.solve(units @ units.T, (wanted - components).mT).mT @ units

    return change


def adding(names: list[str], strength: float) -> dict[int, Change]:
    return {
        block: lambda hidden, vector=vector: hidden + vector
        for block, vector in added_vectors(names, strength, CONCEPTS).items()
    }


def run(model: PreTrainedModel, *requests: GenerationRequest, **config: object) -> list[Result]:
    results = steered_driver(model, concepts=CONCEPTS, **config).run(*requests)
    return [results[one.request_id, 0] for one in requests]


MODES = {
    "ablate one": (["kind"], 1.0, SteeringMode.ABLATE),
    "ablate in part": (["group"], 0.4, SteeringMode.ABLATE),
    "ablate several": (["kind", "rude", "terse"], 1.0, SteeringMode.ABLATE),
    "clamp one": (["rude"], 1.5, SteeringMode.CLAMP),
    "clamp below zero": (["kind"], -1.0, SteeringMode.CLAMP),
    "clamp several": (["terse", "group"], 0.7, SteeringMode.CLAMP),
    "add": (["kind", "group"], 0.8, SteeringMode.ADD),
}
REFERENCES = {
    SteeringMode.ABLATE: ablating,
    SteeringMode.CLAMP: clamping,
    SteeringMode.ADD: adding,
}
SCOPES = {
    SteeringScope.ALL: lambda position: True,
    SteeringScope.PROMPT: lambda position: position < len(PROMPT),
    SteeringScope.ANSWER: lambda position: position >= len(PROMPT),
}


def expected_tokens(
    model: PreTrainedModel,
    names: list[str],
    strength: float,
    mode: SteeringMode,
    scope: SteeringScope = SteeringScope.ALL,
    max_tokens: int = 16,
) -> list[int]:
    with changing_plainly(model, REFERENCES[mode](names, strength), SCOPES[scope]):
        return generate(model, PROMPT, max_tokens)


def expected_readings(hidden: torch.Tensor, direction: Direction, positions: range) -> list[float]:
    """`hidden`: [num_layers, T, hidden_size] of plain transformers."""
    unit = torch.from_numpy(direction.units[direction.blocks.index(direction.reading_block)]).double()
    zero, one = direction.reading_range
    projections = hidden[direction.reading_block, positions] @ unit
    return ((projections - zero) / (one - zero)).tolist()
