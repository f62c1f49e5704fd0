"""The tiny model's tokenizer."""

from pathlib import Path

import pytest

from app.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)
