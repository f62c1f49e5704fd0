"""Texts that are decoded token by token are those that `tokenizers` decodes from all tokens at once."""

import itertools
import json
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models

from app.errors import StartError
from app.text.decoding.decoder import Decoder
from app.text.decoding.pieces import BYTES
from app.text.decoding.steps import steps_of
from tests.app.text.comparison import expected, streamed, token_ids
from tests.app.text.kinds import BYTE_TOKENS, KINDS, gemma, llama_2, llama_3, numbered, with_added, xlm

Kind = Callable[[], Tokenizer]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@cache
def built(kind: Kind) -> tuple[Tokenizer, Decoder]:
    tokenizer = kind()
    return tokenizer, Decoder(tokenizer)


@kinds
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_streamed_text_is_what_the_library_decodes(kind: Kind, data: st.DataObject) -> None:
    tokenizer, decoder = built(kind)
    ids = data.draw(token_ids(tokenizer))
    assert "".join(streamed(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@kinds
@given(text=st.text(alphabet="ab é.日🙂▁\n", max_size=20))
@settings(deadline=None)
def test_the_streamed_text_of_an_encoded_text_is_what_the_library_decodes(kind: Kind, text: str) -> None:
    tokenizer, decoder = built(kind)
    ids = tokenizer.encode(text).ids
    assert "".join(streamed(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


STRINGS = [
    *["<unk>", "", "▁", "▁▁▁", "a", "▁b", " ", "  c", "ab", "ba", "aab", "\n", "!", "i", "é", "日"],
    *[
        "##d",
        "##",
        "e</w>",
        "</w>",
        "f</w>g</w>",
        "|",
        "<pad>",
        "<pad>x",
        ".",
        "do",
        "not",
        "'s",
        " '",
        "n't",
    ],
    *[
        "<0xE2>",
        "<0x82>",
        "<0xAC>",
        "<0x41>",
        "<0xff>",
        "<0x+3>",
        "<0x",
        "41>",
        "ĠHi",
        "Ã",
        "©",
        "ð",
        "Ł",
        "Ļ",
        "Ģ",
    ],
]
"""What the decoders look for, in all kinds of places."""


def any_of(
    decoder: Callable[..., decoders.Decoder], *choices: list[object]
) -> st.SearchStrategy[decoders.Decoder]:
    return st.builds(decoder, *map(st.sampled_from, choices))


ANY_DECODER = st.one_of(
    any_of(decoders.BPEDecoder, ["</w>", "a", ""]),
    st.builds(decoders.ByteFallback),
    st.builds(decoders.ByteLevel),
    any_of(decoders.CTC, ["<pad>", "a", ""], ["|", " ", "b"], [True, False]),
    st.builds(decoders.Fuse),
    any_of(decoders.Metaspace, ["▁", "a"], ["never", "always", "first"]),
    any_of(decoders.Replace, ["▁", "ab", "aab", "", "<0x", "aa"], [" ", "", "a"]),
    any_of(
        lambda regex, content: decoders.Replace(Regex(regex), content),
        ["a+", "b*", "(?<=a)b", "^ "],
        ["", "a"],
    ),
    any_of(decoders.Strip, [" ", "a"], [0, 1, 3], [0]),
    any_of(decoders.Strip, [" ", "a"], [0, 1], [1, 2]),
    any_of(decoders.WordPiece, ["##", "a", ""], [True, False]),
)


@given(sequence=st.lists(ANY_DECODER, max_size=4), data=st.data())
@settings(max_examples=400, deadline=None)
def test_decoders_in_any_order_decode_like_the_library(
    sequence: list[decoders.Decoder], data: st.DataObject
) -> None:
    tokenizer = with_added(Tokenizer(models.WordLevel(numbered(STRINGS), unk_token="<unk>")), "▁▁▁▁", "\n\n")
    tokenizer.decoder = decoders.Sequence(sequence)
    ids = data.draw(token_ids(tokenizer))
    whole = expected(tokenizer, ids)
    stream = Decoder(tokenizer).stream()
    pushed = [text for token_id in ids for text in stream.push(token_id)]
    assert "".join([*pushed, *stream.finish()]) == whole
    assert len(pushed) <= len(ids)


JOINED = [
    "<unk>",
    "a",
    "b",
    " ",
    "ab",
    "aab",
    "b ",
    " .",
    "<0x41>",
    "<0",
    "x42>",
    "▁",
    "Ã",
    "©",
    "x",
    " do",
    " not",
]


@pytest.mark.parametrize(
    "later",
    [
        decoders.Replace("aab", "x"),
        decoders.Replace(Regex("a+b"), "x"),
        decoders.Strip(" ", 3, 0),
        decoders.Strip("a", 2, 1),
        decoders.Metaspace(),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.WordPiece(),
        decoders.BPEDecoder("ab"),
        decoders.CTC("ab", "b"),
        decoders.ByteFallback(),
        decoders.ByteLevel(),
    ],
    ids=lambda decoder: decoder.__getstate__().decode(),
)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_decoders_after_fuse_see_one_string(later: decoders.Decoder, data: st.DataObject) -> None:
    tokenizer = Tokenizer(models.WordLevel(numbered(JOINED), unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), later])
    ids = data.draw(token_ids(tokenizer))
    assert "".join(streamed(Decoder(tokenizer), ids)) == expected(tokenizer, ids)


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_text_is_returned_as_soon_as_no_later_token_can_change_it(kind: Kind, seed: int) -> None:
    """Tries all pairs of a few tokens as what may come next. One of them is no UTF-8."""
    tokenizer, decoder = built(kind)
    size = tokenizer.get_vocab_size()
    few = [(seed * 5 + 7 * number + 3) % size for number in range(7)] + list(range(size - 5, size))
    pool = [*dict.fromkeys(few), tokenizer.token_to_id("<0xFF>") or 0]
    for ids in itertools.product(pool, repeat=2):
        returned = "".join(streamed(decoder, ids)[:-1])
        later = [[*ids, *more] for length in range(3) for more in itertools.product(pool, repeat=length)]
        certain = common_beginning(tokenizer.decode_batch(later))
        assert certain.startswith(returned)
        assert len(returned) >= len(certain.rstrip("�"))  # the pool may lack the rest of a character


def common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(character for character, _ in pairs)


@given(data=st.binary(max_size=24) | st.text(alphabet="aé日🙂\u200d👩🇩", max_size=8).map(str.encode))
@settings(deadline=None)
def test_a_character_is_never_split(data: bytes) -> None:
    tokenizer, decoder = built(llama_3)
    characters = {byte: character for character, byte in BYTES.items()}
    texts = streamed(decoder, [tokenizer.token_to_id(characters[byte]) for byte in data])
    assert "".join(texts) == data.decode(errors="replace")
    assert "\ufffd" in data.decode(errors="replace") or "\ufffd" not in "".join(texts)


def test_bytes_that_are_no_text_are_returned_before_the_run_ends() -> None:
    tokenizer, decoder = built(llama_2)
    ids = [tokenizer.token_to_id(token) for token in ("<0xE2>", "<0x82>", "<0x41>", "<0x42>", "a")]
    assert streamed(decoder, ids) == ["", "", "���", "�", "a", ""]
    assert tokenizer.decode(ids) == "����a"


def test_the_end_of_a_word_is_returned_before_the_space_after_it() -> None:
    tokenizer, decoder = built(xlm)
    ids = [tokenizer.token_to_id(token) for token in ("ab</w>", "a", "b</w>")]
    assert streamed(decoder, ids) == ["ab", " a", "b", ""]


def test_the_characters_of_a_byte_run_belong_to_the_tokens_of_their_last_bytes() -> None:
    tokenizer, decoder = built(llama_2)
    stream = decoder.stream()
    for byte in "aé🙂".encode():
        assert stream.push(tokenizer.token_to_id(BYTE_TOKENS[byte])) == []
    assert stream.push(tokenizer.token_to_id("b")) == ["a", "", "é", "", "", "", "🙂", "b"]


@pytest.mark.parametrize(
    ("kind", "token", "data"),
    [
        ("gemma", "▁▁▁▁", b"    "),
        ("gemma", "\n\n", b"\n\n"),
        ("gemma", "▁a", b" a"),
        ("gemma", "<0xF0>", b"\xf0"),
        ("llama_2", "▁a", b" a"),
        ("llama_2", "▁of▁it", b" of it"),
        ("llama_2", "<0x0A>", b"\n"),
        ("llama_3", "Ġa", b" a"),
        ("llama_3", "ðŁ", b"\xf0\x9f"),
        ("llama_3", "日本", "日本".encode()),
        ("t5", "▁the▁end", b" the end"),
        ("bert", "hello", b" hello"),
        ("bert", "##able", b"able"),
        ("bert", ".", b"."),
        ("bert", "##added", b"added"),
        ("wav2vec2", "|", b" "),
        ("wav2vec2", "<pad>", b""),
        ("xlm", "ab</w>", b"ab "),
        ("words", "bc", b" bc"),
    ],
)
def test_the_bytes_of_a_token_are_those_that_it_adds_in_the_middle_of_a_text(
    kind: str, token: str, data: bytes
) -> None:
    tokenizer, decoder = built(next(built_kind for built_kind in KINDS if built_kind.__name__ == kind))
    assert decoder.bytes_of(tokenizer.token_to_id(token)) == data


@pytest.mark.parametrize("kind", [gemma, llama_2, llama_3], ids=lambda kind: kind.__name__)
@given(text=st.text(alphabet="ab é.日🙂\n", max_size=20))
@settings(deadline=None)
def test_joined_bytes_are_the_text(kind: Kind, text: str) -> None:
    tokenizer, decoder = built(kind)
    joined = b"".join(map(decoder.bytes_of, tokenizer.encode(text).ids)).decode()
    assert joined.removeprefix(" " if kind is llama_2 else "") == text


def test_replacements_in_joined_text_are_in_the_bytes() -> None:
    tokenizer = Tokenizer(models.WordLevel(numbered(["<unk>", "▁a", "<0x41>"]), unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    assert [Decoder(tokenizer).bytes_of(token_id) for token_id in range(4)] == [b"<unk>", b" a", b"A", b""]


def test_an_older_file_that_leaves_fields_out_decodes_like_in_the_library() -> None:
    content = json.loads(llama_2().to_str())
    for decoder in ({"type": "Metaspace", "replacement": "▁"}, {"suffix": "</w>"}):
        tokenizer = Tokenizer.from_str(json.dumps({**content, "decoder": decoder}))
        ids = [tokenizer.token_to_id(token) for token in ("▁a", "▁▁", "b")]
        assert "".join(streamed(Decoder(tokenizer), ids)) == tokenizer.decode(ids)


def test_an_unknown_decoder_is_a_start_error_that_names_it() -> None:
    with pytest.raises(StartError, match="Rot13"):
        steps_of({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Rot13"}]})
