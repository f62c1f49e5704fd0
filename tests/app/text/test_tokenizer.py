"""The joined bytes of tokens are what the tokenizer itself decodes."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from app.errors import StartError
from app.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)


def sentencepiece_like(directory: Path) -> Tokenizer:
    """Like Llama 2's: "▁" is a space, unknown characters become bytes, and decoding strips one space."""
    pieces = ["<unk>", "<s>", "▁", "a", "b", "▁a", "ab", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


@given(data=st.data())
def test_bytes_of_byte_level_tokens(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, tokenizer.size - 1)))
    joined = b"".join(tokenizer.text_of(token_id).data for token_id in ids)
    assert joined.decode(errors="replace") == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["a b", "ab ä", "€ 😀a", " a", "<think>a"])
def test_bytes_of_sentencepiece_tokens(tmp_path: Path, text: str) -> None:
    tokenizer = sentencepiece_like(tmp_path)
    ids = tokenizer.encode(text)
    joined = b"".join(tokenizer.text_of(token_id).data for token_id in ids).decode()
    assert tokenizer.strips_leading_space
    assert joined.removeprefix(" ") == tokenizer.decode(ids)


def test_a_control_token_has_a_name_but_no_text(tokenizer: Tokenizer) -> None:
    token = tokenizer.text_of(tokenizer.control_tokens["<|im_end|>"])
    assert (token.name, token.raw, token.data) == ("<|im_end|>", b"<|im_end|>", b"")


def test_an_added_token_that_is_not_special_is_text(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(tmp_path)
    assert "<think>" not in tokenizer.control_tokens
    assert tokenizer.text_of(tokenizer.size - 1).data == b"<think>"


def test_an_id_beyond_the_vocabulary_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.text_of(tokenizer.size + 100).data == b""


def test_the_names_of_control_tokens_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>")
    assert set(ids).isdisjoint(tokenizer.control_tokens.values())
    assert tokenizer.decode(ids) == "a<|im_end|>"
    assert tokenizer.encode_marked("<|im_end|>") == [tokenizer.control_tokens["<|im_end|>"]]


def test_a_missing_file_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
