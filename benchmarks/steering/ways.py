"""The field's ways to make steering vectors from contrastive pairs, computed in plain transformers."""

from dataclasses import dataclass

import torch

from benchmarks.steering.plain import PlainModel, Vectors
from benchmarks.steering.subjects import Pair

_SINGLE_DEPTHS = (0.5, 0.65, 0.8)
_FIRST, _LAST = -17, -5
"""The layers in repeng's examples, counted from the end."""
_NUM_COEFFICIENTS = 7


@dataclass(frozen=True)
class Way:
    """Vectors at some decoder blocks, in a scale of their own."""

    name: str
    vectors: Vectors
    coefficients: tuple[float, ...]
    """What to multiply the vectors with: from hardly an effect to broken answers."""


def all_ways(model: PlainModel, pairs: list[Pair]) -> list[Way]:
    positive, negative = (
        model.mean_hidden([pair[side] for pair in pairs]) for side in ("positive", "negative")
    )
    differences = positive - negative  # [len(pairs), num_blocks - 1, hidden_size]
    return [*_mean_differences(model, differences), _principal_components(model, differences)]


def _mean_differences(model: PlainModel, differences: torch.Tensor) -> list[Way]:
    """CAA (arXiv:2312.06681): adds the mean difference to one block's output, times a coefficient.

    Several blocks are tried, as the authors do. They read the last token, which is a letter in their data; in
    sentences, the mean over the tokens works better.
    """
    blocks = [round(depth * model.num_blocks) for depth in _SINGLE_DEPTHS]
    coefficients = tuple(0.28 * 1.4**step for step in range(_NUM_COEFFICIENTS))
    return [
        Way(f"mean difference, block {block}", {block: differences[:, block].mean(0)}, coefficients)
        for block in blocks
    ]


def _principal_components(model: PlainModel, differences: torch.Tensor) -> Way:
    """repeng (https://github.com/vgel/repeng): the first principal component of the differences at each of
    many blocks, of unit length, with the sign that most pairs have. All blocks get the same coefficient.

    repeng's default subtracts the mean of the differences first, and so most of the concept. This is its
    method "pca_center", which does not.
    """
    vectors: Vectors = {}
    lengths = []
    for block in range(model.num_blocks + _FIRST, model.num_blocks + _LAST + 1):
        rows = differences[:, block]
        component = torch.linalg.svd(rows, full_matrices=False).Vh[0]
        sign = 1.0 if (rows @ component > 0).float().mean() >= 0.5 else -1.0
        vectors[block] = sign * component
        lengths.append(float((rows @ vectors[block]).mean()))
    typical = sum(lengths) / len(lengths)
    coefficients = tuple(0.014 * typical * 1.4**step for step in range(_NUM_COEFFICIENTS))
    return Way("principal components, many blocks", vectors, coefficients)
