"""Loads each process's part of a model by transformers' own tensor parallel plan."""

import os
import re
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from transformers import AutoConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from inference.interface.config import ConfigError
from inference.tensor_parallel.group import Group

_NUMBER = re.compile(r"\.\d+(?=\.|$)")  # of a layer, for which a plan has a `*`
_COLUMN, _ROW = "colwise", "rowwise"


class RowParallelLinear(nn.Linear):
    """A linear layer whose inputs are divided among the processes. Each has the sum of all results."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = F.linear(x, self.weight)
        dist.all_reduce(output)
        return output if self.bias is None else output + self.bias


def check_divisible(config: Any, size: int) -> None:
    """Raises ConfigError if transformers cannot divide a model with this configuration among processes."""
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise ConfigError(
            f"engine.tensor_parallel is {size}, but transformers has no tensor parallel plan for models of "
            f"type {text.model_type}"
        )
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % size:
        raise ConfigError(
            f"engine.tensor_parallel is {size}, but the model has {heads} key-value heads: "
            "they must divide evenly"
        )


def read_config(directory: str) -> Any:
    return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def loading_options(group: Group) -> dict[str, Any]:
    """The arguments with which `from_pretrained` loads this process's part of a model."""
    os.environ["LOCAL_RANK"] = str(group.device.index or 0)  # transformers takes the CUDA device from it
    return {"distributed_config": DistributedConfig(tp_size=group.size, tp_plan="auto")}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that transformers has divided, or a tensor that is whole."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def use_plain_layers(model: PreTrainedModel) -> None:
    """Replaces divided linear layers by plain ones, whose weights are the part of this process.

    transformers' own compute the same, but exchange their parameters in every call, and no back end can fuse
    them. Layers with another way to divide them stay as they are.
    """
    plan = model.tp_plan
    for name, module in list(model.named_modules()):
        style = plan.get(_NUMBER.sub(".*", name))
        if type(module) is nn.Linear and style in (_COLUMN, _ROW) and hasattr(module.weight, "to_local"):
            model.set_submodule(name, _plain(module, RowParallelLinear if style == _ROW else nn.Linear))


def _plain(linear: nn.Linear, kind: type[nn.Linear]) -> nn.Linear:
    weight = local_part(linear.weight.detach())
    outputs, inputs = weight.shape
    plain = kind(inputs, outputs, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(local_part(linear.bias.detach()), requires_grad=False)
    return plain.eval()
