"""Answers requests and reads texts with a loaded model: checks, trains concepts, and waits for the engine."""

import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from app.concepts.concept import Concept as Definition
from app.concepts.readings import TextEncoder, present_readings
from app.concepts.texts import ConceptTexts
from app.errors import InternalError, InvalidRequest, shorten
from app.schemas.chat import ChatRequest
from app.schemas.readings import ReadRequest, TextReadings
from app.text.generation_request import digests_in, generation_request
from app.text.transcript import ConceptDigests
from inference.driver import RefusedError
from inference.interface.concepts import ReadTexts
from inference.interface.requests import GenerationRequest, RefusalCode
from tiller.errors import as_python_errors
from tiller.generation import Generation
from tiller.library import Library
from tiller.model import LoadedModel
from tiller.options import chat_request


class Answering:
    """Thread-safe. The methods raise the errors of `tiller.errors`."""

    def __init__(self, model: LoadedModel, library: Library) -> None:
        self._model = model
        self._library = library
        texts = ConceptTexts(model.tokenizer, model.prompts, model.info.vocab_size)
        limit = model.settings.limits.max_concept_tokens
        self._encoder = TextEncoder(texts, model.info.context_length, limit)

    def prepare(self, request: Mapping[str, Any], n: int | None = None, prefix: str = "") -> Generation:
        """Checks a request. `prefix`: stands before the names of its options in error messages.

        Raises TypeError for an unknown option, and for a request that is no dictionary.
        """
        model = self._model
        if not isinstance(request, Mapping):
            given = f"{type(request).__name__} {shorten(request)}"
            raise TypeError(f"{prefix.rstrip('.')} must be a dictionary of messages and options, got {given}")
        with as_python_errors(prefix):
            chat = chat_request(request, n, model.settings)
            named = _NamedConcepts(self._library, chat)
            wanted = generation_request(
                chat,
                model.renderer.encode(chat.messages),
                named.by_id,
                model.info,
                model.end_token_ids,
                request_id=uuid.uuid4().hex,
                nice=False,
                default_max_tokens=model.settings.limits.default_max_tokens,
            )
        return Generation(
            model.driver, model.tokenizer, wanted, chat.stop, named.digests, named.needed(wanted)
        )

    def answer(self, generations: Sequence[Generation]) -> None:
        """Runs the generations to their ends, together: as many at a time as the engine takes."""
        waiting, running = deque(generations), list[Generation]()
        with self._running(generations):
            while waiting or running:
                while waiting and self._start(waiting[0]):
                    running.append(waiting.popleft())
                self._wait(running)
                for generation in running:
                    generation.take()
                running = [generation for generation in running if not generation.ended]

    def stream(self, generation: Generation) -> Iterator[str]:
        """The text of a generation's only choice, in pieces."""
        with self._running([generation]):
            while not self._start(generation):
                self._wait([])
            while not generation.ended:
                self._wait([generation])
                yield from (step.text for step in generation.take() if step.text)

    def read(self, name: str, given: Sequence[Any]) -> list[TextReadings]:
        """`given`: texts, or the messages of one conversation."""
        model = self._model
        kind = "texts" if all(isinstance(each, str) for each in given) else "messages"
        with as_python_errors():
            wanted = ReadRequest.model_validate({kind: list(given)}, context=model.settings)
            definition = self._library.find(name)
            if wanted.texts:
                encoded = self._encoder.encode_texts(wanted.texts)
            else:
                encoded = self._encoder.encode_conversation(*wanted.turns)
            self._library.make_usable([definition])
            command = ReadTexts(uuid.uuid4().hex, definition.digest, encoded.prompts, encoded.texts)
            result = model.driver.read(command)
            if result.readings is None:
                raise InvalidRequest(result.detail) if result.detail else InternalError("the concept is lost")
            return present_readings(encoded, result.readings, model.tokenizer).readings

    @contextmanager
    def _running(self, generations: Sequence[Generation]) -> Iterator[None]:
        """Trains the concepts that the generations need. Ends the generations at the end of the block.

        So an error or Ctrl-C leaves none of them in the engine.
        """
        with as_python_errors():
            self._library.make_usable(
                concept for generation in generations for concept in generation.concepts
            )
            try:
                yield
            finally:
                for generation in generations:
                    generation.end()

    def _start(self, generation: Generation) -> bool:
        """Hands a generation to the engine. Returns False if the engine has no room for it now."""
        try:
            generation.start()
        except RefusedError as error:
            if error.result.refusal is RefusalCode.QUEUE_FULL and not self._model.driver.engine.is_idle:
                return False
            raise
        return True

    def _wait(self, generations: Sequence[Generation]) -> None:
        """Steps the engine until there is news of one of the generations, or once if there are none."""
        driver = self._model.driver
        if generations:
            driver.run_until(lambda: any(generation.has_news for generation in generations))
        else:
            driver.step()


class _NamedConcepts:
    """The concepts that a chat names, by field."""

    def __init__(self, library: Library, chat: ChatRequest) -> None:
        """Raises UNKNOWN_STEERING_CONCEPT."""
        condition = [chat.steering_when.concept] if chat.steering_when else []
        self._steering = [library.find(concept, "steering") for concept in chat.steering_concepts]
        self._condition = [library.find(concept, "when") for concept in condition]
        self._readings = [library.find(concept, "readings") for concept in chat.steering_readings]

    @property
    def by_id(self) -> dict[str, str]:
        """Id -> digest."""
        return _digests([*self._steering, *self._condition, *self._readings])

    @property
    def digests(self) -> ConceptDigests:
        return ConceptDigests(_digests(self._steering), _digests(self._readings))

    def needed(self, wanted: GenerationRequest) -> list[Definition]:
        """Those that the engine needs for the request: not those of strength 0."""
        named = [*self._steering, *self._condition, *self._readings]
        return [concept for concept in named if concept.digest in digests_in(wanted)]


def _digests(concepts: Iterable[Definition]) -> dict[str, str]:
    return {concept.id: concept.digest for concept in concepts}
