"""End tokens come from the configuration files themselves."""

import json
from pathlib import Path

import pytest

from inference.interface.errors import SourceError
from inference.models.end_tokens import read_end_token_ids


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        (
            {"eos_token_id": [5, 6]},
            {"eos_token_id": 1},
            {"generation_config.json": (5, 6), "config.json": (1,)},
        ),
        (None, {"eos_token_id": 1}, {"config.json": (1,)}),
        ({"eos_token_id": None}, {"eos_token_id": None}, {}),
        ({}, {"model_type": "llama"}, {}),  # transformers' class would say 2
        (None, {"eos_token_id": 1, "text_config": {"eos_token_id": [1, 106]}}, {"config.json": (1, 106)}),
        (None, {"eos_token_id": -1}, {}),
    ],
)
def test_each_file_is_read(
    tmp_path: Path, generation_config: object, config: object, expected: dict[str, tuple[int, ...]]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    assert read_end_token_ids(tmp_path) == expected


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"generation_config\.json cannot be read: Expecting property name"):
        read_end_token_ids(tmp_path)
