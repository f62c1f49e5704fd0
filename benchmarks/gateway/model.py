"""The model that the stand-in engines report: the embedded model, with a context that never fills up."""

import json
from pathlib import Path

from app.text.tokenizer import Tokenizer
from benchmarks.gateway.script import TEXT, Script
from inference.interface.protocol import ModelInfo

CONTEXT_LENGTH = 2**30
"""In tokens. An open stream never reaches this length."""


def model_info(directory: Path) -> ModelInfo:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return ModelInfo(
        directory=str(directory),
        context_length=CONTEXT_LENGTH,
        vocab_size=config["vocab_size"],
        end_token_ids={"config.json": (2, 0)},
        weights_digest="0" * 64,
        dtype="float32",
    )


def load_script(model: ModelInfo) -> Script:
    return Script(Tokenizer(Path(model.directory)).encode(TEXT))
