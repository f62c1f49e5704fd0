"""Captured decode steps are compared with eager ones at the start. A wrong one is not used."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.compute.graphs import Act, Graphs, Replay
from inference.runner.rehearsal import powers_of_two
from inference.scheduling.steering import BlockVectors
from tests.inference.conftest import Driver, build_driver, generate, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import HIDDEN_SIZE, steered_driver
from tests.inference.test_exactness import random_prompt


class Wrong(Recorder):
    """Captures steps whose replays are preceded by `spoil`, a mistake in the graphs."""

    def __init__(self, spoil: Callable[[], object]) -> None:
        super().__init__()
        self._spoil = spoil

    def __call__(self, acts: Iterable[Act]) -> Iterator[Replay]:
        for replay in super().__call__(acts):
            yield lambda replay=replay: (self._spoil(), replay())  # type: ignore[misc]


def inputs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The input tensors of the captured steps, as soon as there are any."""
    found = SimpleNamespace()
    run = Graphs.run

    def recorded(self: Graphs, batch: object) -> torch.Tensor:
        found.__dict__.update(vars(self._inputs))
        return run(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Graphs, "run", recorded)
    return found


@pytest.mark.parametrize("what", ["block tables", "positions", "steering", "stale logits"])
def test_a_wrong_captured_step_is_not_used(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llama = make_model("llama")
    expected = generate(llama, random_prompt(0, 5), 9)
    found = inputs(monkeypatch)
    spoil = {
        "block tables": lambda: found._block_tables[:, 5:].zero_(),  # pages after the first key tile
        "positions": lambda: found._positions.clamp_(max=200),
        "steering": lambda: found._rows.zero_(),
    }
    capture = Stale() if what == "stale logits" else Wrong(spoil[what])
    driver = steered_driver(llama, capture=capture, kv_cache_gib=0.05)
    assert "captured decode steps give other results" in caplog.text
    assert driver.run(request("a", random_prompt(0, 5), 9))["a", 0].token_ids == expected
    assert capture.num_replayed == 0


class Stale(Recorder):
    """Replays nothing."""

    def __call__(self, acts: Iterable[Act]) -> Iterator[Replay]:
        for _ in super().__call__(acts):
            yield lambda: None


def test_the_trial_reaches_several_tiles_and_leaves_nothing_behind() -> None:
    driver: Driver = steered_driver(make_model("llama"), capture=Recorder(), kv_cache_gib=0.05)
    runner = driver.engine.runner
    assert runner._graphs is not None
    assert max(int(keys[:-1].any(-1).any(-1).sum()) for keys in runner._cache.keys) > 512
    driver.engine.check_integrity()
    bank = runner.bank
    assert bank.vectors.any(), "the trial steers"
    wanted = [
        BlockVectors((1,), np.full((1, HIDDEN_SIZE), i, np.float32)) for i in range(1, bank.num_rows + 1)
    ]
    rows = bank.place(wanted)
    expected = torch.zeros_like(bank.vectors)
    for number, vectors in enumerate(wanted, start=1):
        expected[1, rows[vectors.key]] = number
    assert torch.equal(bank.vectors, expected)


@pytest.mark.parametrize("num_blocks", [1, 3, 20])
def test_small_caches(num_blocks: int, llama: PreTrainedModel) -> None:
    expected = generate(llama, random_prompt(0, 3), 4)
    driver = build_driver(llama, capture=Recorder(), num_blocks=num_blocks, max_running=3)
    assert driver.engine.runner._graphs is not None
    assert driver.run(request("a", random_prompt(0, 3), 4))["a", 0].token_ids == expected


def test_powers_of_two() -> None:
    assert [list(powers_of_two(most)) for most in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]
