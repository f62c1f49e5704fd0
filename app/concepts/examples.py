"""Turns a concept's examples into a TrainConcept command and checks token limits. Knows no files."""

from itertools import takewhile

from app.concepts.concept import Concept, Example
from app.concepts.grouping import arrange
from app.concepts.neutral_texts import NEUTRAL_QUESTIONS, NEUTRAL_TEXTS
from app.concepts.texts import ConceptTexts
from app.concepts.vectors.imported import ServedModel, refusal
from app.errors import InvalidRequest
from app.schemas.messages import Message
from inference.interface.concepts import TrainConcept


class ExampleEncoder:
    """Tokenizes examples. Thread-safe: an instance never changes after construction."""

    def __init__(
        self,
        texts: ConceptTexts,
        served: ServedModel,
        context_length: int,
        max_tokens: int,
        stop_token_ids: tuple[int, ...] = (),
        num_questions: int = len(NEUTRAL_QUESTIONS),
    ) -> None:
        """`max_tokens`: limit for a concept's texts together. `stop_token_ids`: they end an answer.

        `num_questions`: how many neutral questions a training asks.
        """
        self._texts = texts
        self._served = served
        self._context_length = context_length
        self._max_tokens = max_tokens
        self._stop_token_ids = stop_token_ids
        self._questions = NEUTRAL_QUESTIONS[:num_questions]
        self._neutral = [texts.tokenizer.encode(text) for text in NEUTRAL_TEXTS]

    def encode(self, concept: Concept) -> TrainConcept:
        """Can take seconds.

        Raises InvalidRequest, which names the invalid text, or if the concept's vectors belong to another
        model; MISSING_CAPABILITY; UNAVAILABLE if the vectors cannot be read.
        """
        if error := self.refusal(concept):
            raise error
        prompt = self._texts.training_prompt()
        room = self._context_length - len(prompt)
        encoded = self._encode_pairs(concept.examples, prompt)
        arrangement = arrange(concept.examples)
        pairs = [encoded[number] for number in arrangement.order]
        return TrainConcept(
            concept=concept.digest,
            prompt_token_ids=prompt,
            pair_prompts=[pair.prompt for pair in pairs],
            positive=[pair.positive for pair in pairs],
            negative=[pair.negative for pair in pairs],
            groups=arrangement.groups,
            num_duplicates=len(encoded) - len(pairs),
            neutral=[token_ids[:room] for token_ids in self._neutral],
            questions=self._encode_questions(),
            stop_token_ids=self._stop_token_ids,
            continuations=self._texts.continuations if self._questions else b"",
            vectors=concept.vectors.load() if concept.vectors else None,
        )

    def refusal(self, concept: Concept) -> InvalidRequest | None:
        """The error if the concept was imported for another model."""
        return refusal(concept.vectors.record, self._served) if concept.vectors else None

    def _encode_pairs(self, examples: tuple[Example, ...], prompt: list[int]) -> list["_Pair"]:
        pairs: list[_Pair] = []
        remaining = self._max_tokens
        for position, example in enumerate(examples):
            pairs.append(_Pair(self._texts, example, f"examples[{position}]", prompt, self._context_length))
            remaining -= pairs[-1].own_tokens
            if remaining < 0:
                message = f"the examples must have at most {self._max_tokens} tokens in total"
                raise InvalidRequest(message, "examples")
        return pairs

    def _encode_questions(self) -> list[list[int]]:
        """The neutral questions, up to the first one that leaves no room for an answer."""
        messages = [Message(role="user", content=text) for text in self._questions]
        questions = (self._texts.renderer.encode([message]) for message in messages)
        return list(takewhile(lambda question: len(question) < self._context_length, questions))


class _Pair:
    """The tokens of an example."""

    def __init__(
        self, texts: ConceptTexts, example: Example, path: str, prompt: list[int], context_length: int
    ) -> None:
        """`prompt`: for an example that has none. Raises InvalidRequest if a text does not fit."""
        own = [] if example.prompt is None else texts.prompt(f"{path}.prompt", example.prompt)
        self.prompt = own or prompt
        room = max(0, context_length - len(self.prompt))
        if own and not room:
            message = f"{path}.prompt has {len(own)} tokens; the model's context has {context_length}"
            raise InvalidRequest(message, f"{path}.prompt")
        self.positive = _fitting(texts, f"{path}.positive", example.positive, room)
        self.negative = _fitting(texts, f"{path}.negative", example.negative, room)
        self.own_tokens = len(own) + len(self.positive) + len(self.negative)
        """Number of tokens in the example's own texts."""


def _fitting(texts: ConceptTexts, path: str, text: str, room: int) -> list[int]:
    token_ids = texts.encode(path, text)
    if len(token_ids) > room:
        message = f"{path} has {len(token_ids)} tokens; the model's context leaves room for {room}"
        raise InvalidRequest(message, path)
    return token_ids
