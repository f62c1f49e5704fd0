"""Gradients through operations that torch cannot differentiate by itself.

The engine computes in inference mode. While gradients are enabled, parts of the model that a back end has
replaced compute with the model's own code, and products with quantized weights with `multiply`.
"""

from collections.abc import Callable
from typing import Any

import torch


def multiply(
    x: torch.Tensor,
    product: Callable[[torch.Tensor], torch.Tensor],
    weight: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """product(x), with the gradient of x @ weight().T: as if the product rounded nothing.

    `x`: [..., in_features]; `weight()`: [out_features, in_features], in any dtype. It is called only in the
    backward pass, so the whole weight exists only for a moment. The weight itself has no gradient.
    """
    result: torch.Tensor = _Product.apply(x, product, weight)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        product: Callable[[torch.Tensor], torch.Tensor],
        weight: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        ctx.weight = weight
        return product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        [gradient] = gradients
        return gradient @ ctx.weight().to(gradient.dtype), None, None
