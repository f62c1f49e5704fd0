"""What each decoder of `tokenizers` does. Knows the JSON of decoders, but no vocabulary.

The rules are those of the library's Rust code (tokenizers/src/decoders). The tests compare with the library.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Regex, decoders

from app.errors import StartError
from app.text.decoding import pieces, texts
from app.text.decoding.pieces import Change, PieceStage
from app.text.decoding.texts import TextStage

_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""What WordPiece and CTC replace, one after the other, if they clean up."""


@dataclass(frozen=True)
class Step:
    """One decoder: how to make its stages, which belong to one text, and what it does to single tokens."""

    of_pieces: Callable[[], PieceStage]
    """Makes the stage for the strings of tokens."""
    of_text: tuple[Callable[[], TextStage], ...] = ()
    """Makes the stages for the joined text, if an earlier decoder has joined all strings."""
    of_last_pieces: Callable[[], PieceStage] | None = None
    """Makes the stage for strings that no later decoder looks at one by one. None: `of_pieces`."""
    joins: bool = False
    """Whether the decoder joins all strings to one text."""
    inside: Change = str
    """The string that the decoder makes of a token's, if the token is neither the first nor the last."""
    keeps_no_state: bool = False
    """Whether the decoder applies `inside` to every string."""
    inside_text: Change = str
    """What the decoder makes of a part of the joined text that is neither at its start nor at its end."""
    bytes_of: Callable[[str], bytes | None] = lambda _: None
    """The bytes for which a token's string stands; None if it stands for no bytes."""


def steps_of(decoder: dict[str, Any] | None) -> list[Step]:
    """The steps of a decoder, given as in tokenizer.json. Raises StartError for one that is unknown."""
    if decoder is None:
        return [_each_but_first(str, lambda text: f" {text}")]
    return list(map(_step, _flat(decoder)))


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flat(part)


def _step(decoder: dict[str, Any]) -> Step:
    match decoder["type"]:
        case "BPEDecoder":
            return _bpe(decoder["suffix"])
        case "ByteFallback":
            return _BYTE_FALLBACK
        case "ByteLevel":
            return BYTE_LEVEL
        case "CTC":
            return _ctc(decoder["pad_token"], decoder["word_delimiter_token"], decoder["cleanup"])
        case "Fuse":
            return FUSE
        case "Metaspace":
            return _metaspace(decoder["replacement"], decoder["prepend_scheme"])
        case "Replace":
            return _replace(decoder["pattern"], decoder["content"])
        case "Strip":
            return _strip(decoder["content"], decoder["start"], decoder["stop"])
        case "WordPiece":
            return _word_piece(decoder["prefix"], decoder["cleanup"])
    raise StartError(
        f"the model's tokenizer.json has a decoder that this server does not know: {decoder['type']}"
    )


def _each_but_first(first: Change, other: Change, of_text: tuple[Callable[[], TextStage], ...] = ()) -> Step:
    return Step(partial(pieces.PerString, first, other), of_text, inside=other)


def _bpe(suffix: str) -> Step:
    """The suffix of a word becomes a space; in the last string, nothing."""
    in_word, in_last = _replacing(suffix, " "), _replacing(suffix, "")
    return Step(
        partial(pieces.LastDiffers, in_word, in_last),
        _replacing_text(suffix, ""),
        partial(pieces.WordEnds, suffix) if suffix else None,
        inside=in_word,
    )


def _ctc(pad: str, delimiter: str, cleanup: bool) -> Step:
    """Repeated strings are dropped, and paddings."""
    replacements = ((pad, ""), *(_CLEANUP if cleanup else ()), *([(delimiter, " ")] if cleanup else ()))
    change = _replacing_all(replacements)
    return Step(partial(pieces.Repeats, change), _replacing_all_text(replacements), inside=change)


def _metaspace(replacement: str, prepend_scheme: str) -> Step:
    """The replacement becomes a space; in the first string, nothing, unless the encoder never prepends it."""
    in_first = " " if prepend_scheme == "never" else ""
    return _each_but_first(
        _replacing(replacement, in_first),
        _replacing(replacement, " "),
        _replacing_text(replacement, in_first),
    )


def _replace(pattern: dict[str, str], content: str) -> Step:
    """A string, or what a regular expression matches, is replaced within each string.

    The library's regular expressions are not Python's, so the library itself replaces them.
    """
    string = pattern.get("String")
    wanted = Regex(pattern["Regex"]) if string is None else string
    replace = decoders.Replace(wanted, content)

    def change(text: str) -> str:
        return replace.decode([text])

    of_text = _replacing_text(string, content) if string else (partial(texts.Whole, change),)
    return Step(
        partial(pieces.PerString, change, change),
        of_text,
        inside=change,
        keeps_no_state=True,
        inside_text=change,
    )


def _strip(character: str, start: int, stop: int) -> Step:
    """Up to `start` leading and `stop` trailing characters are removed from each string."""

    def change(text: str) -> str:
        leading = len(text) - len(text.lstrip(character))
        trailing = len(text) - len(text.rstrip(character))
        return text[min(leading, start) : len(text) - min(trailing, stop)]

    of_text = (partial(texts.Stripping, character, start, stop),)
    return Step(partial(pieces.PerString, change, change), of_text, inside=change, keeps_no_state=True)


def _word_piece(prefix: str, cleanup: bool) -> Step:
    """Strings are joined with spaces, but without one before a string that has the prefix."""
    replacements = _CLEANUP if cleanup else ()
    clean = _replacing_all(replacements)

    def later(text: str) -> str:
        return clean(text.removeprefix(prefix) if text.startswith(prefix) else f" {text}")

    return _each_but_first(clean, later, _replacing_all_text(replacements))


def _replacing(pattern: str, content: str) -> Change:
    return lambda text: text.replace(pattern, content)


def _replacing_all(replacements: tuple[tuple[str, str], ...]) -> Change:
    def change(text: str) -> str:
        for pattern, content in replacements:
            text = text.replace(pattern, content)
        return text

    return change


def _replacing_text(pattern: str, content: str) -> tuple[Callable[[], TextStage], ...]:
    if pattern:
        return (partial(texts.Replacing, pattern, content),)
    return (partial(texts.Whole, _replacing(pattern, content)),)  # between all characters


def _replacing_all_text(replacements: tuple[tuple[str, str], ...]) -> tuple[Callable[[], TextStage], ...]:
    return tuple(stage for pattern, content in replacements for stage in _replacing_text(pattern, content))


def _is_no_byte_token(text: str) -> bool:
    return len(text) > len("<0x00>") or not text.startswith("<0x"[: len(text)])


def _text_of_byte_token(text: str) -> str:
    data = pieces.byte_of(text)
    return text if data is None else data.decode(errors="replace")


_BYTE_FALLBACK = Step(
    pieces.ByteRuns,
    (partial(texts.WholeUnless, _text_of_byte_token, _is_no_byte_token),),
    bytes_of=pieces.byte_of,
)

FUSE = Step(partial(pieces.PerString, str, str), joins=True)

BYTE_LEVEL = Step(
    pieces.ByteCharacters,
    (
        partial(
            texts.WholeUnless,
            lambda text: pieces.bytes_of(text).decode(errors="replace"),
            lambda text: not pieces.BYTES.keys() >= set(text),
        ),
    ),
    joins=True,
    bytes_of=pieces.bytes_of,
)
