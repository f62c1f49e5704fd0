"""Derivatives by steering vectors are those of plain transformers, whatever replaces parts of the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.backends.cpu import backend as cpu
from inference.backends.cpu.linear import QuantizedLinear
from inference.interface.config import EngineConfig
from inference.runner.differentiation import differentiate
from inference.scheduling.probe import Derivative
from inference.scheduling.steering import BlockVectors
from tests.inference.backends.cpu.weights import in_four_bits
from tests.inference.conftest import (
    ARCHITECTURES,
    COMMON,
    Driver,
    build_driver,
    make_model,
    request,
)
from tests.inference.steering.conftest import copied, random_tokens

CACHE_DIRECTORY = Path(EngineConfig().cache_directory).expanduser()
TEXTS = [
    (random_tokens(1, 7), random_tokens(2, 9)),
    (random_tokens(1, 7), random_tokens(3, 14)),
    (random_tokens(4, 12), random_tokens(5, 1)),
    ([5], random_tokens(6, 20)),
]
"""Prompts and contents of different lengths. The longest one is longer than the windows of all models."""
BLOCKS = (0, 2)
ADDED = BlockVectors(
    BLOCKS, np.random.default_rng(0).standard_normal((2, COMMON["hidden_size"])).astype(np.float32)
)


def expected(model: PreTrainedModel, prompt: list[int], content: list[int]) -> tuple[float, np.ndarray]:
    """The mean log probability of a text's content, and its gradient, by transformers and autograd."""
    vectors = torch.from_numpy(ADDED.vectors).requires_grad_()

    def add(vector: torch.Tensor) -> object:
        def hook(block: object, args: object, output: object) -> object:
            output, hidden = copied(output)
            hidden += vector * (torch.arange(hidden.shape[1]) > 0)[:, None]
            return output

        return hook

    handles = [
        model.model.layers[block].register_forward_hook(add(v))
        for block, v in zip(BLOCKS, vectors, strict=True)
    ]
    logits = model(torch.tensor([prompt + content])).logits[0, len(prompt) - 1 : -1]
    logprob = logits.log_softmax(-1).gather(-1, torch.tensor(content)[:, None]).mean()
    [gradient] = torch.autograd.grad(logprob, vectors)
    for handle in handles:
        handle.remove()
    return logprob.item(), gradient.numpy()


def round_weights(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Gives the linear layers weights that 4 bits hold exactly, or those that 8 bits stand for."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = in_four_bits(module.weight.data) if bits == 4 else QuantizedLinear(module).weight
            module.weight.data = weight
    return model


def differentiate_in(driver: Driver) -> Derivative:
    derivative = Derivative(TEXTS, ADDED)
    differentiate(driver.engine.runner.model, derivative)
    assert not derivative.find_fault()
    return derivative


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_derivatives_are_those_of_autograd_in_plain_transformers(architecture: str) -> None:
    reference = make_model(architecture)
    derivative = differentiate_in(build_driver(make_model(architecture)))
    for number, text in enumerate(TEXTS):
        logprob, gradient = expected(reference, *text)
        assert derivative.logprobs[number] == pytest.approx(logprob, abs=1e-4)
        error = np.abs(derivative.gradients[number] - gradient).max()
        assert error < 1e-3 * np.abs(gradient).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bits", [4, 8])
def test_derivatives_of_a_quantized_model_are_those_of_its_weights(architecture: str, bits: int) -> None:
    """But for the rounding of activations, which has no derivative. It changes the gradients a little."""
    backend = cpu.load(CACHE_DIRECTORY)
    reference, served = (
        round_weights(make_model(architecture, intermediate_size=64, head_dim=16), bits) for _ in range(2)
    )
    driver = build_driver(served, backend=backend, quantization="integer")
    assert any(isinstance(module, QuantizedLinear) for module in served.modules())
    derivative = differentiate_in(driver)
    for number, text in enumerate(TEXTS):
        _, gradient = expected(reference, *text)
        actual = derivative.gradients[number]
        cosine = (actual * gradient).sum() / np.linalg.norm(actual) / np.linalg.norm(gradient)
        assert cosine > (0.8 if bits == 4 else 0.99)


def test_a_derivative_changes_nothing_else() -> None:
    model = make_model("llama")
    driver = build_driver(model)
    one, other = (request(name, random_tokens(0, 20), 10, top_logprobs=2) for name in "ab")
    before = driver.run(one)["a", 0]
    differentiate_in(driver)
    after = driver.run(other)["b", 0]
    assert [event.logprobs for event in after.events] == [event.logprobs for event in before.events]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_texts_in_one_batch_do_not_change_each_other() -> None:
    model = build_driver(make_model("llama")).engine.runner.model
    together = Derivative(TEXTS, ADDED)
    differentiate(model, together)
    for number, text in enumerate(TEXTS):
        alone = Derivative([text], ADDED)
        differentiate(model, alone)
        np.testing.assert_allclose(together.gradients[number], alone.gradients[0], rtol=1e-3, atol=1e-6)


def test_a_text_whose_output_is_not_finite_is_noticed() -> None:
    model = build_driver(make_model("llama")).engine.runner.model
    derivative = Derivative(TEXTS, BlockVectors(BLOCKS, np.full_like(ADDED.vectors, np.inf)))
    differentiate(model, derivative)
    assert derivative.find_fault() == "the derivatives are not finite"
