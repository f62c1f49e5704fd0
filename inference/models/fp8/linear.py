"""A linear layer with an FP8 weight. Also its input is rounded to FP8, and tensor cores multiply the two."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inference.compute.gradients import multiply
from inference.interface.quantization import BLOCK, Fp8Scheme
from inference.models.fp8.operations import FP8, TORCH, Operations, dequantize_blocks

_MULTIPLE = 16  # of both sizes of a weight: `torch._scaled_mm` needs it


@dataclass(frozen=True)
class ScaleNames:
    """What a checkpoint calls the scales of a layer. Their shapes [] and [1] both occur."""

    weight: str = "weight_scale"
    input: str = "input_scale"
    weight_shape: tuple[int, ...] = (1,)
    """Of the scale of a whole weight."""
    input_shape: tuple[int, ...] = (1,)


def find_unsuitable_size(linear: nn.Linear, scheme: Fp8Scheme) -> int | None:
    """A size of the layer with which `torch._scaled_mm` does not work, or None."""
    if scheme.weights == "block":
        return None
    sizes = (linear.in_features, linear.out_features)
    return next((size for size in sizes if size % _MULTIPLE), None)


class Fp8Linear(nn.Module):
    """Computes x @ weight.T + bias. `x`: [..., in_features].

    Its parameters have the names, shapes and dtypes of the checkpoint. Scales are float32. Call `prepare`
    after the parameters have their values.
    """

    operations: Operations = TORCH
    _scales: torch.Tensor

    def __init__(self, like: nn.Linear, scheme: Fp8Scheme, names: ScaleNames) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.scheme, self._names = scheme, names
        as_scale: Any = {"dtype": torch.float32, "device": like.weight.device}
        self.weight = _parameter(torch.empty_like(like.weight, dtype=FP8))
        self.bias = like.bias
        self.register_parameter(names.weight, _parameter(torch.empty(self._scale_shape(), **as_scale)))
        if scheme.activations == "tensor":
            self.register_parameter(names.input, _parameter(torch.empty(names.input_shape, **as_scale)))

    def _scale_shape(self) -> tuple[int, ...]:
        match self.scheme.weights:
            case "tensor":
                return self._names.weight_shape
            case "channel":
                return self.out_features, 1
            case "block":
                return -(-self.out_features // BLOCK), -(-self.in_features // BLOCK)

    @property
    def stored_scales(self) -> torch.Tensor:
        """As in the checkpoint: [] or [1], [out_features, 1], or [out_features / 128, in_features / 128]."""
        return self.get_parameter(self._names.weight)

    def prepare(self) -> None:
        """Brings the scales into the layout of `torch._scaled_mm`.

        Raises ValueError if a scale is no number, or negative, or if the input would be divided by 0.
        """
        self.requires_grad_(False)
        for parameter in (self.stored_scales, *self._input_scales()):
            if not bool((parameter >= 0).all() & parameter.isfinite().all()):
                raise ValueError("a scale is not a positive number")
        if any(not bool(scale) for scale in self._input_scales()):
            raise ValueError("the scale of the input is 0")
        self._out_dtype: torch.dtype | None = None
        match self.scheme.weights, self.scheme.activations:
            case "block", _:
                scales = self.stored_scales
            case "tensor", "tensor":
                scales = self.stored_scales.view(())
            case _:  # one scale per row, also for a weight that has only one
                scales = self.stored_scales.view(1, -1).expand(1, self.out_features).contiguous()
                if not _rounds_to_any_dtype(scales.device):
                    self._out_dtype = torch.bfloat16
        self.register_buffer("_scales", scales, persistent=False)

    def _input_scales(self) -> list[torch.Tensor]:
        return [self.get_parameter(self._names.input)] if self.scheme.activations == "tensor" else []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled():
            out = multiply(rows, self._multiply, self.dequantize)
        else:
            out = self._multiply(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        match self.scheme.activations:
            case "group":
                return self.operations.multiply_blocks(x, self.weight, self._scales)
            case "token":
                numbers, scales = self.operations.quantize_tokens(x)
            case "tensor":
                [scale] = self._input_scales()
                scales = scale.view(())
                numbers = self.operations.quantize_tensor(x, scales)
                if self.scheme.weights == "channel":  # both must have one scale per row
                    scales = scales.repeat(len(x), 1)
        dtype = self._out_dtype or x.dtype
        return torch._scaled_mm(
            numbers, self.weight.t(), scale_a=scales, scale_b=self._scales, out_dtype=dtype
        ).to(x.dtype)

    def dequantize(self) -> torch.Tensor:
        """The float32 weight [out_features, in_features]. Scales per output channel apply to rows."""
        if self.scheme.weights == "block":
            return dequantize_blocks(self.weight, self.stored_scales)
        return self.weight.float() * self.stored_scales

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme}"


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _rounds_to_any_dtype(device: torch.device) -> bool:
    """Whether `torch._scaled_mm` with scales per row has other results than bf16.

    cuBLAS has, from compute capability 9.0 and CUDA 12.9 on. Else torch calls a kernel of CUTLASS.
    """
    if device.type != "cuda":
        return True
    cuda = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability(device)[0] == 9 and cuda >= (12, 9)
