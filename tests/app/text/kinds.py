"""Small tokenizers with the parts that the tokenizers of real models have, one for each kind of decoder."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from app.text import tokenizer as tiller

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def llama_2() -> Tokenizer:
    """SentencePiece's BPE: "▁" is a space, unknown characters are bytes, decoding drops a leading space."""
    pieces = ["<unk>", *BYTE_TOKENS, "▁", "a", "b", "▁a", "ab", "é", "▁▁", "."]
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return with_added(tokenizer, "<think>", "▁of▁it")


def gemma() -> Tokenizer:
    """Like Llama 2's, but indentation and line breaks are added tokens, and nothing is stripped."""
    pieces = ["<unk>", *BYTE_TOKENS, "▁", "a", "b", "▁a", "ab", "\n"]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), [("▁", "a"), ("a", "b")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return with_added(tokenizer, "▁▁", "▁▁▁▁", "\n\n", "<table>")


def llama_3() -> Tokenizer:
    """GPT-2's byte-level BPE, as most models have it. One added token has characters beyond its alphabet."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ab", "ðŁ"]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), [("Ġ", "a"), ("a", "b"), ("ð", "Ł")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added(tokenizer, "<think>", "日本", "Ġé")


def t5() -> Tokenizer:
    """SentencePiece's Unigram: the first token loses its "▁"."""
    pieces = ["<unk>", "▁", "▁a", "a", "b", "▁▁", "▁the▁end", ".", "日"]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return with_added(tokenizer, "▁▁▁▁", "<extra>")


def t5_without_prefix() -> Tokenizer:
    tokenizer = t5()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece: tokens are words or, with "##", parts of words."""
    pieces = ["[UNK]", "hello", "##able", "##s", ".", ",", "'", "s", "n't", "do", "not", "do not", "##", "日"]
    tokenizer = Tokenizer(models.WordPiece(numbered(pieces), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return with_added(tokenizer, "##added", "new")


def bert_without_cleanup() -> Tokenizer:
    tokenizer = bert()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def wav2vec2() -> Tokenizer:
    """CTC: letters, with a token for no sound and one between words. Repetitions are one letter."""
    pieces = ["<unk>", "<pad>", "|", "h", "e", "l", "o", "'", "s", "."]
    tokenizer = Tokenizer(models.WordLevel(numbered(pieces), unk_token="<unk>"))
    tokenizer.decoder = decoders.CTC()
    return with_added(tokenizer, "do not", "<pad>e")


def xlm() -> Tokenizer:
    """The BPE before byte-level ones: "</w>" ends a word."""
    pieces = ["<unk>", "a", "b", "a</w>", "b</w>", "ab</w>", "</w>", ".</w>", "é</w>"]
    bpe = models.BPE(numbered(pieces), [("a", "b</w>")], unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.BPEDecoder()
    return with_added(tokenizer, "new</w>", "x</w>y</w>", "z")


def words() -> Tokenizer:
    """No decoder: tokens are joined with spaces."""
    return with_added(
        Tokenizer(models.WordLevel(numbered(["<unk>", "a", "bc", " ", "."]), unk_token="<unk>")), "new"
    )


KINDS: list[Callable[[], Tokenizer]] = [
    llama_2,
    gemma,
    llama_3,
    t5,
    t5_without_prefix,
    bert,
    bert_without_cleanup,
    wav2vec2,
    xlm,
    words,
]


def numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: token_id for token_id, piece in enumerate(pieces)}


def with_added(tokenizer: Tokenizer, *contents: str) -> Tokenizer:
    """Adds these tokens, which are not special, and two that are."""
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in contents])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return tokenizer


def saved(tokenizer: Tokenizer, directory: Path) -> tiller.Tokenizer:
    """Tiller's tokenizer, from a model directory with this one."""
    tokenizer.save(str(directory / "tokenizer.json"))
    return tiller.Tokenizer(directory)
