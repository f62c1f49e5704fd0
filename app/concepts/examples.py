"""Turns a concept's examples into a TrainConcept command and checks token limits. Knows no files."""

from app.concepts.concept import Concept
from app.concepts.neutral_texts import NEUTRAL_TEXTS, TRAINING_PROMPT
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.messages import Message
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer
from app.text.vocabulary import check_embedded
from inference.interface.protocol import TrainConcept


class ExampleEncoder:
    """Tokenizes examples. Thread-safe: an instance never changes after construction."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: PromptRenderer | None,
        context_length: int,
        max_tokens: int,
        vocab_size: int,
    ) -> None:
        """`max_tokens`: limit for a concept's texts together. `prompts`: None if the model cannot chat.

        `vocab_size`: number of rows of the model's embedding.
        """
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._context_length = context_length
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._neutral = [tokenizer.encode(text) for text in NEUTRAL_TEXTS]

    def encode(self, concept: Concept) -> TrainConcept:
        """Can take seconds. Raises InvalidRequest, which names the invalid text, or MISSING_CAPABILITY."""
        prompt = self._encode_prompt()
        room = self._context_length - len(prompt)
        positive: list[list[int]] = []
        negative: list[list[int]] = []
        remaining = self._max_tokens
        for position, example in enumerate(concept.examples):
            positive.append(self._encode_text(f"examples[{position}].positive", example.positive, room))
            negative.append(self._encode_text(f"examples[{position}].negative", example.negative, room))
            remaining -= len(positive[-1]) + len(negative[-1])
            if remaining < 0:
                message = f"the examples must have at most {self._max_tokens} tokens in total"
                raise InvalidRequest(message, "examples")
        neutral = [token_ids[:room] for token_ids in self._neutral]
        return TrainConcept(concept.digest, prompt, positive, negative, neutral)

    def _encode_prompt(self) -> list[int]:
        """The tokens before each text: the chat template up to the assistant's answer."""
        if self._prompts is None:
            message = "the model cannot be steered: it has no chat template"
            raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
        try:
            return self._prompts.encode([Message(role="user", content=TRAINING_PROMPT)])
        except InvalidRequest:
            message = "the model cannot be steered: its chat template refuses a conversation of one message"
            raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model") from None

    def _encode_text(self, path: str, text: str, room: int) -> list[int]:
        token_ids = self._tokenizer.encode(text)
        if not token_ids:
            raise InvalidRequest(f"{path} encodes to no tokens", path)
        if len(token_ids) > room:
            message = f"{path} has {len(token_ids)} tokens; the model's context leaves room for {room}"
            raise InvalidRequest(message, path)
        if name := self._tokenizer.plain.find_reserved(token_ids):
            message = f"{path} contains {name}, which the model's tokenizer cannot encode as text"
            raise InvalidRequest(message, path)
        check_embedded(token_ids, self._vocab_size, path)
        return token_ids
