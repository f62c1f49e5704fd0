import torch

from inference.compute.gradients import multiply


def test_a_product_that_rounds_has_the_gradient_of_one_that_does_not() -> None:
    weight = torch.randn(3, 5)
    x = torch.randn(2, 4, 5, requires_grad=True)
    calls = []

    def read_weight() -> torch.Tensor:
        calls.append(1)
        return weight.double()

    output = multiply(x, lambda x: (x @ weight.T).round(), read_weight)
    assert torch.equal(output, (x @ weight.T).round())
    assert not calls  # the forward pass needs no weight
    slopes = torch.randn(2, 4, 3)
    [gradient] = torch.autograd.grad(output, x, slopes)
    torch.testing.assert_close(gradient, slopes @ weight)


def test_inputs_without_a_gradient_need_no_weight() -> None:
    output = multiply(torch.ones(1, 2), lambda x: 2 * x, lambda: torch.empty(0))
    assert not output.requires_grad
