"""Encodes texts in which the names of reserved tokens are only text. Knows no templates and no messages.

`tokenizers` always reads a reserved token's name as that token. So this module gives each reserved token
another name in a copy of the tokenizer: a secret one, which no text contains. The copy encodes all other text
like the original.
"""

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, models


class PlainEncoder:
    """A copy of a tokenizer whose reserved tokens have secret names. Thread-safe: it never changes."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, reserved: Mapping[str, int]) -> None:
        """`reserved`: the id of each reserved token, by name. All of them are added tokens of `tokenizer`."""
        self._nonce = f"<{secrets.token_hex(16)}:"
        self._secret = {name: f"{self._nonce}{number}>" for number, name in enumerate(reserved)}
        self._copy, fixed = _copy_with(self._secret, tokenizer)
        self._copy_ids = {self._copy.token_to_id(name) for name in self._secret.values()}
        self._original_ids = dict(self._moved_ids(tokenizer))
        self._fixed = {reserved[name]: name for name in fixed}

    def encode(self, text: str) -> list[int]:
        """Encodes all of a text as text. But see `find_reserved`."""
        return self._original(self._copy.encode(text, add_special_tokens=False).ids)

    def encode_around(self, texts: Sequence[str], names: Sequence[str]) -> list[int]:
        """Encodes a text that was split at names of reserved tokens. So there is one more text than names.

        A name becomes its token if it would in the original tokenizer: a token may need word boundaries, for
        example. Otherwise, and in `texts`, a name is text.
        """
        written = [self._secret[name] for name in names]
        while True:
            parts = [part for pair in zip(texts, [*written, ""], strict=True) for part in pair]
            encoding = self._copy.encode("".join(parts), add_special_tokens=False)
            unread = self._find_unread(encoding, parts, written)
            if not unread:
                return self._original(encoding.ids)
            for position in unread:
                written[position] = names[position]

    def _find_unread(self, encoding: tokenizers.Encoding, parts: list[str], written: list[str]) -> list[int]:
        """The positions in `written` of the secret names that did not become tokens."""
        spans = [
            span
            for token_id, span in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id in self._copy_ids
        ]
        read = {character for span in spans for character in range(*span)}
        starts = list(itertools.accumulate(map(len, parts)))[::2]
        return [
            position
            for position, name in enumerate(written)
            if name.startswith(self._nonce) and starts[position] not in read
        ]

    def find_reserved(self, token_ids: Iterable[int], written: Iterable[str] = ()) -> str | None:
        """The name of a reserved token that is in `token_ids` more often than in `written`, or None.

        The merges of a few vocabularies join the name of a reserved token to this token, so `encode` cannot
        avoid it.
        """
        if not self._fixed:
            return None
        counts = Counter(self._fixed[token_id] for token_id in token_ids if token_id in self._fixed)
        counts.subtract(name for name in written if name in counts)
        return next((name for name, count in counts.items() if count > 0), None)

    def _original(self, token_ids: list[int]) -> list[int]:
        """The original tokenizer's ids for those of the copy."""
        if self._original_ids:
            return [self._original_ids.get(token_id, token_id) for token_id in token_ids]
        return token_ids

    def _moved_ids(self, tokenizer: tokenizers.Tokenizer) -> Iterator[tuple[int, int]]:
        """Maps the ids of the copy's added tokens to the original ones, where they differ.

        A token that only the vocabulary's name tied to its id gets a new id when it is renamed.
        """
        for original, token in tokenizer.get_added_tokens_decoder().items():
            moved = self._copy.token_to_id(self._secret.get(token.content, token.content))
            if moved is not None and moved != original:
                yield moved, original


def _copy_with(
    names: Mapping[str, str], tokenizer: tokenizers.Tokenizer
) -> tuple[tokenizers.Tokenizer, set[str]]:
    """A copy of the tokenizer with other names for added tokens, and the names that its model keeps."""
    model = tokenizer.model
    fixed: set[str] = set()
    if isinstance(model, models.BPE):  # Merges name the tokens of the vocabulary, so these keep their names.
        fixed = {name for name in names if model.token_to_id(name) is not None and name != model.unk_token}
    else:
        model = _rename(json.loads(tokenizer.to_str()), names)
    copy = tokenizers.Tokenizer(model)
    if tokenizer.normalizer is not None:
        copy.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        copy.pre_tokenizer = tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    copy.add_tokens([_renamed(token, names.get(token.content, token.content)) for _, token in added])
    return copy, fixed


def _rename(content: dict[str, Any], names: Mapping[str, str]) -> models.Model:
    """The model of a tokenizer.json with other names for tokens of its vocabulary."""
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {names.get(name, name): token_id for name, token_id in vocabulary.items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    bare = {"version": content["version"], "added_tokens": [], "model": model}
    renamed: models.Model = tokenizers.Tokenizer.from_str(json.dumps(bare)).model
    return renamed


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
