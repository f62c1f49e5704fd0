"""Turns texts and conversations into tokens to read, and the engine's readings into an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.concepts.texts import ConceptTexts
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.messages import Message
from app.schemas.readings import Readings, TextReadings, TokenReading
from app.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids. `prompts[i]` comes before `texts[i]`, and is not read."""

    prompts: list[list[int]]
    texts: list[list[int]]


class TextEncoder:
    """Tokenizes what is to be read. Thread-safe: it never changes."""

    def __init__(self, texts: ConceptTexts, context_length: int, max_tokens: int) -> None:
        """`max_tokens`: limit for all texts of a request together."""
        self._texts = texts
        self._context_length = context_length
        self._max_tokens = max_tokens

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Each text is the assistant's answer to the training prompt.

        Can take seconds. Raises InvalidRequest, CONTEXT_LENGTH_EXCEEDED or MISSING_CAPABILITY.
        """
        prompt = self._texts.training_prompt()
        encoded: list[list[int]] = []
        remaining = self._max_tokens
        for position, text in enumerate(texts):
            path = f"texts[{position}]"
            encoded.append(self._texts.encode(path, text))
            self._check_length(path, len(prompt) + len(encoded[-1]))
            remaining -= len(encoded[-1])
            if remaining < 0:
                raise InvalidRequest(
                    f"the texts must have at most {self._max_tokens} tokens in total", "texts"
                )
        return EncodedTexts([prompt] * len(encoded), encoded)

    def encode_conversation(self, messages: Sequence[Message], words: str | None) -> EncodedTexts:
        """All tokens that the chat template makes, and then the assistant's `words`, if there are some.

        The first token is not read. Raises the same errors as `encode_texts`.
        """
        path = "messages"
        rendered = self._texts.conversation(path, messages)
        spoken = self._texts.encode(path, words) if words else []
        token_ids = [*rendered, *spoken]
        self._check_length(path, len(token_ids))
        if len(token_ids) < 2:
            raise InvalidRequest("messages encode to no tokens that can be read", path)
        return EncodedTexts([token_ids[:1]], [token_ids[1:]])

    def _check_length(self, path: str, tokens: int) -> None:
        if tokens > self._context_length:
            message = (
                f"{path} is too long: with the tokens of the chat template it has {tokens} tokens, and this "
                f"model's maximum context length for reading is {self._context_length} tokens"
            )
            raise ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, path)


def present_readings(encoded: EncodedTexts, readings: list[list[float]], tokenizer: Tokenizer) -> Readings:
    """`readings`: for each token of each text."""
    return Readings(
        [
            TextReadings(
                sum(numbers) / len(numbers),
                [
                    TokenReading(tokenizer.text_of(token_id).name, number)
                    for token_id, number in zip(text, numbers, strict=True)
                ],
            )
            for text, numbers in zip(encoded.texts, readings, strict=True)
        ]
    )
