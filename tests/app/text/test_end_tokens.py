"""An answer ends at every token that a file of the model names for this."""

import json
from pathlib import Path

from app.schemas.models import EndToken
from app.text.end_tokens import find_end_tokens
from app.text.prompts import load_text
from tests.app.fakes import write_model_directory


def test_it_is_the_union_of_all_that_name_one(tmp_path: Path) -> None:
    """As in a fine-tune whose config still has the base model's end token."""
    write_model_directory(tmp_path)
    tokenizer, prompts = load_text(tmp_path)
    configured = {"generation_config.json": (0, 7), "config.json": (0,)}
    assert find_end_tokens(configured, tokenizer, prompts, vocab_size=1000) == [
        EndToken(0, "<|endoftext|>", ["generation_config.json", "config.json"]),
        EndToken(2, "<|im_end|>", ["tokenizer", "chat template"]),
        EndToken(7, "%", ["generation_config.json"]),
    ]


def test_a_token_without_embedding_is_none(tmp_path: Path) -> None:
    """The tokenizer names an `eos_token` that the vocabulary lacks, so it gets an id beyond the model's."""
    write_model_directory(tmp_path, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer, prompts = load_text(tmp_path)
    assert tokenizer.eos_token_id == 300
    assert find_end_tokens({"config.json": (300,)}, tokenizer, prompts, vocab_size=300) == []
