"""The tokenizer of a model directory: its tokens, their bytes, and what cannot be loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from app.errors import StartError
from app.text.tokenizer import Tokenizer
from tests.app.text.kinds import KINDS, gemma, saved, words


@given(data=st.data())
def test_bytes_of_byte_level_tokens(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, tokenizer.size - 1)))
    joined = b"".join(tokenizer.text_of(token_id).raw for token_id in ids)
    assert joined.decode(errors="replace") == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_tokenizer_decodes_like_the_library(
    kind: Callable[[], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    original = kind()
    tokenizer = saved(original, tmp_path)
    assert tokenizer.size == original.get_vocab_size()
    for ids in (range(tokenizer.size), range(tokenizer.size + 5, -1, -1), []):
        assert tokenizer.decode(list(ids)) == original.decode(list(ids), skip_special_tokens=False)


def test_a_control_token_has_a_name_but_no_text(tokenizer: Tokenizer) -> None:
    token = tokenizer.text_of(tokenizer.control_tokens["<|im_end|>"])
    assert (token.name, token.raw, token.is_control) == ("<|im_end|>", b"<|im_end|>", True)
    assert "".join(tokenizer.decode_stream().push(tokenizer.control_tokens["<|im_end|>"])) == ""


def test_an_added_token_that_is_not_special_is_text(tmp_path: Path) -> None:
    original = gemma()
    tokenizer = saved(original, tmp_path)
    token = tokenizer.text_of(original.token_to_id("▁▁▁▁"))
    assert (token.name, token.raw, token.is_control) == ("    ", b"    ", False)
    assert tokenizer.text_of(original.token_to_id("<table>")).name == "<table>"


def test_a_token_that_is_a_part_of_a_character_has_its_bytes(tmp_path: Path) -> None:
    original = gemma()
    token = saved(original, tmp_path).text_of(original.token_to_id("<0xF0>"))
    assert (token.name, token.raw) == ("\ufffd", b"\xf0")


def test_an_id_beyond_the_vocabulary_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.text_of(tokenizer.size + 100).raw == b""


def test_a_file_without_a_decoder_is_loaded_like_by_the_library(tmp_path: Path) -> None:
    original = words()
    content = json.loads(original.to_str())
    assert content.pop("decoder") is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    stream = tokenizer.decode_stream()
    ids = [original.token_to_id(token) for token in ("a", "bc", "<s>", "new", "a")]
    assert "".join(text for token_id in ids for text in stream.push(token_id)) == "a bc new a"
    assert tokenizer.decode(ids) == "a bc <s> new a"


def test_a_file_with_a_decoder_that_the_library_does_not_know_is_a_start_error(tmp_path: Path) -> None:
    content = json.loads(words().to_str()) | {"decoder": {"type": "Rot13"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StartError, match=r"tokenizer\.json cannot be loaded: .*Decoder"):
        Tokenizer(tmp_path)


def test_the_names_of_control_tokens_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>")
    assert set(ids).isdisjoint(tokenizer.control_tokens.values())
    assert tokenizer.decode(ids) == "a<|im_end|>"
    assert tokenizer.encode_marked("<|im_end|>") == [tokenizer.control_tokens["<|im_end|>"]]


def test_a_missing_file_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
