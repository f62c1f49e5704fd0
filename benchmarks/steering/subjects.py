"""The concepts that the evaluation trains and measures."""

from dataclasses import dataclass
from pathlib import Path

import yaml

Pair = dict[str, str]
"""`positive` and `negative`: two texts."""

_HERE = Path(__file__).parent
_DIRECTORIES = (_HERE.parents[1] / "configs" / "concepts", _HERE / "concepts")
_HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Subject:
    name: str
    shown: list[Pair]
    """What the concept is trained with."""
    held_out: list[Pair]
    """What its effect is measured on."""
    goals: dict[int, str]
    """By sign, 1 or -1: the instruction with which a prompt asks for the same as steering."""


def load_subjects(names: list[str]) -> list[Subject]:
    """The concepts of these names, or all if there are none."""
    files = {file.stem: file for directory in _DIRECTORIES for file in sorted(directory.glob("*.yaml"))}
    goals = yaml.safe_load((_HERE / "goals.yaml").read_text())
    return [_load(name, files[name], goals[name]) for name in names or files]


def _load(name: str, file: Path, goals: dict[int, str]) -> Subject:
    pairs: list[Pair] = yaml.safe_load(file.read_text())["examples"]
    is_held_out = [position % _HELD_OUT_EVERY == 1 for position in range(len(pairs))]
    return Subject(
        name,
        [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if not held_out],
        [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if held_out],
        goals,
    )
