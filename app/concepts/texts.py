"""Tokenizes the texts and prompts of concepts. Knows no concepts and no limits."""

from collections.abc import Sequence
from functools import cached_property

from app.concepts.neutral_texts import TRAINING_PROMPT
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.messages import Message
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer
from app.text.vocabulary import check_embedded
from app.text.words import continuation_bits


class ConceptTexts:
    """The model's tokenizer and chat template, for concepts. Thread-safe: it never changes."""

    def __init__(self, tokenizer: Tokenizer, prompts: PromptRenderer | None, vocab_size: int) -> None:
        """`prompts`: None if the model cannot chat. `vocab_size`: number of rows of the model's embedding."""
        self.tokenizer = tokenizer
        self._prompts = prompts
        self._vocab_size = vocab_size

    def encode(self, path: str, text: str) -> list[int]:
        """The tokens of an assistant's words. `path`: the text's place in the request, for error messages.

        Raises InvalidRequest if the model cannot read the text.
        """
        token_ids = self.tokenizer.encode(text)
        if not token_ids:
            raise InvalidRequest(f"{path} encodes to no tokens", path)
        if name := self.tokenizer.plain.find_reserved(token_ids):
            message = f"{path} contains {name}, which the model's tokenizer cannot encode as text"
            raise InvalidRequest(message, path)
        check_embedded(token_ids, self._vocab_size, path)
        return token_ids

    def training_prompt(self) -> list[int]:
        """The chat template up to the assistant's words, after TRAINING_PROMPT.

        Raises MISSING_CAPABILITY if the model cannot be steered.
        """
        try:
            return self.renderer.encode([Message(role="user", content=TRAINING_PROMPT)])
        except InvalidRequest:
            message = "the model cannot be steered: its chat template refuses a conversation of one message"
            raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model") from None

    def prompt(self, path: str, text: str) -> list[int]:
        """The chat template up to the assistant's words, after a user message.

        Raises InvalidRequest if the chat template refuses it, or if the model cannot read it.
        """
        try:
            return self.conversation(path, [Message(role="user", content=text)])
        except InvalidRequest as error:
            if error.param == path:
                raise
            raise InvalidRequest(f"{path} cannot be used: {error.message}", path) from None

    def conversation(self, path: str, messages: Sequence[Message]) -> list[int]:
        """The chat template up to the assistant's words, after these messages.

        Raises InvalidRequest if the chat template refuses them, or if the model cannot read them.
        """
        token_ids = self.renderer.encode(messages)
        check_embedded(token_ids, self._vocab_size, path)
        return token_ids

    @cached_property
    def continuations(self) -> bytes:
        """See TrainConcept. Takes a second for a large vocabulary."""
        return continuation_bits(self.tokenizer.pieces())

    @property
    def renderer(self) -> PromptRenderer:
        """Raises MISSING_CAPABILITY if the model has no chat template."""
        if self._prompts is None:
            message = "the model cannot be steered: it has no chat template"
            raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
        return self._prompts
