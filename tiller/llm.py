"""LLM: a model in this process that chats, is steered, and is read."""

import gc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Unpack, overload

from app.concepts.concept import Example
from app.schemas.readings import TextReadings
from inference.interface.config import Device, DType, Quantization
from tiller.answering import Answering
from tiller.concept import Concept, name_of
from tiller.errors import EngineError, as_python_errors
from tiller.generation import Answer
from tiller.library import Library, OnProgress, as_examples
from tiller.model import LoadedModel, load, make_settings
from tiller.options import ConceptName, Messages, Options, Request, shows_options

Pair = tuple[str, str] | Mapping[str, str | None] | Example
"""(positive, negative), a dictionary with these keys and perhaps "prompt", or an Example."""

_SHIPPED = Path(__file__).parents[1] / "configs" / "concepts"
"""Where the concepts of a checkout are."""


class LLM:
    """A chat model, loaded into this process. It needs no server, no socket and no event loop.

    Threads may share an LLM. The requests of all threads run in the same batch. Ctrl-C ends the requests of
    the call that it interrupts, and the LLM stays usable. A call blocks the event loop of its thread.
    """

    def __init__(
        self,
        source: str = "embedded",
        *,
        revision: str | None = None,
        chat_template: str | Path | None = None,
        device: Device = "auto",
        dtype: DType = "auto",
        quantization: Quantization = "none",
        threads: int | None = None,
        context_length: int | None = None,
        kv_cache_gib: float | None = None,
        max_batch_tokens: int | None = None,
        max_running: int | None = None,
        steering_blocks: tuple[int, ...] | None = None,
        training_questions: int | None = None,
        refine: bool = False,
        seed: int | None = None,
        concepts: str | Path | None = None,
        cache_directory: str | Path = "~/.cache/tiller",
    ) -> None:
        """Loads the model, and compiles what it needs on this machine the first time.

        - `source`: "embedded" (SmolLM2-135M-Instruct, which the first use downloads), a directory in the
          transformers layout, a GGUF file, or a Hugging Face hub id.
        - `revision`: branch, tag or commit of a model from the hub.
        - `chat_template`: a Jinja file to use in place of the model's own.
        - `device`: "cpu", "cuda", or "auto": "cuda" if there is a CUDA device.
        - `dtype`: "float32", "bfloat16", "float16", or "auto": float32 on the CPU, else the model's own.
        - `quantization`: "none", or "integer", which is faster and only for the CPU.
        - `threads`: CPU threads of one operation.
        - `context_length`: limit for prompt and answer together, in tokens. Default: the model's own.
        - `kv_cache_gib`: memory for keys and values. Default: 2 on the CPU, what is free on CUDA.
        - `max_batch_tokens`: limit for the tokens that one step computes. Default: 512.
        - `max_running`: limit for the requests that run at the same time. Default: 256.
        - `steering_blocks`: the only decoder blocks to steer, from 0. Default: each concept has its own.
        - `training_questions`: how many neutral questions the model answers in a training, up to 20. Fewer
          are faster, and make the strengths less exact. Default: 20.
        - `refine`: whether trainings refine the directions of concepts by gradients. Most concepts become
          stronger at the same fluency, and trainings longer.
        - `seed`: makes sampling repeatable, as long as the calls are the same. Default: random.
        - `concepts`: directory with concept files, which are like those in configs/concepts. Default: that
          folder in the checkout of Tiller, or in the working directory.
        - `cache_directory`: for converted models, compiled kernels and trained concepts.

        Raises LoadError, and InvalidRequestError (a ValueError) if an argument breaks a rule.
        """
        engine = {
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "threads": threads,
            "context_length": context_length,
            "kv_cache_gib": kv_cache_gib,
            "max_batch_tokens": max_batch_tokens,
            "max_running": max_running,
            "steering_blocks": steering_blocks,
            "seed": seed,
        }
        steering = {"questions": training_questions, "refine": refine}
        self._model: LoadedModel | None = load(
            make_settings(source, chat_template, revision, cache_directory, engine, steering)
        )
        self._library = Library(self._model, _concept_directory(concepts))
        self._answering = Answering(self._model, self._library)

    @overload
    def chat(self, messages: Messages, *, n: None = None, **options: Unpack[Options]) -> Answer: ...

    @overload
    def chat(self, messages: Messages, *, n: int, **options: Unpack[Options]) -> list[Answer]: ...

    @shows_options
    def chat(
        self, messages: Messages, *, n: int | None = None, **options: Unpack[Options]
    ) -> Answer | list[Answer]:
        """Generates the assistant's next message.

        `messages`: a user's message, or a conversation. A conversation is a list of dictionaries with `role`
        and `content`: an optional "system" message, then "user" and "assistant" in turn, the last one "user".
        `n`: returns a list of this many Answers to the same prompt. `options`: see Options.

        Raises InvalidRequestError (a ValueError), which names the argument, UnknownConceptError (a KeyError),
        or EngineError (a RuntimeError).
        """
        generation = self._open().prepare({"messages": messages, **options}, n)
        self._open().answer([generation])
        answers = generation.answers()
        return answers[0] if n is None else answers

    @shows_options
    def stream(self, messages: Messages, **options: Unpack[Options]) -> Iterator[str]:
        """Like `chat`, but yields the answer's text in pieces, as they are generated.

        The pieces together are the text. A piece never ends within a character. The generation goes on only
        while the next piece is asked for, or another call runs; when the iterator is closed, it ends.
        """
        generation = self._open().prepare({"messages": messages, **options})
        return self._open().stream(generation)

    def generate_many(self, requests: Iterable[Request]) -> list[Answer]:
        """Answers many requests in one continuously filled batch. Returns the answers in their order.

        Each Request has its own messages, sampling and steering. All are checked before the first one runs.
        Raises the same errors as `chat`. They name the request, such as `requests[3].temperature`.
        """
        answering = self._open()
        generations = [
            answering.prepare(request, prefix=f"requests[{position}].")
            for position, request in enumerate(requests)
        ]
        answering.answer(generations)
        return [answer for generation in generations for answer in generation.answers()]

    def train(
        self,
        pairs: Iterable[Pair],
        name: str | None = None,
        *,
        prompts: str | Iterable[str | None] | None = None,
        description: str = "",
        on_progress: OnProgress | None = None,
    ) -> Concept:
        """Makes a concept from contrastive pairs, measures it, and makes it known to requests.

        Each pair is (positive, negative): two answers of the assistant that differ in the concept only. It
        may also be an Example, or a dictionary with these keys and `prompt`, the user message that both texts
        answer. `prompts`: one such message for all pairs, or a list with one for each. Default: "Tell me
        something."

        `name`: up to 64 letters, digits, `-` and `_`; default: the digest of the pairs. A concept of the same
        name is replaced. `on_progress`: called with the state ("training", "measuring", "ready") and the
        progress, 0 to 1. The result is kept in the cache directory, so the same pairs are trained only once.

        Raises InvalidRequestError (a ValueError) if the pairs break a rule or give no direction.
        """
        library = self._opened_library()
        with as_python_errors():
            return library.enter(library.define(as_examples(pairs, prompts), name, description), on_progress)

    @property
    def concepts(self) -> list[str]:
        """The names of all concepts that requests can name."""
        return self._opened_library().names

    def concept(self, name: str, on_progress: OnProgress | None = None) -> Concept:
        """The concept of this name, with its report. Trains it first if necessary.

        Raises UnknownConceptError (a KeyError), and InvalidRequestError if the model cannot use it.
        """
        library = self._opened_library()
        with as_python_errors():
            return library.train(library.find(name), on_progress)

    def add(
        self,
        concept: Concept,
        pairs: Iterable[Pair] = (),
        *,
        prompts: str | Iterable[str | None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Concept:
        """Makes a concept from `Concept.load` known to requests. Returns it with its report.

        Strength 1 adds what the file says. `pairs`, as in `train`, are for measuring the vectors. Without
        them the report says that nothing was measured. A concept of the same name is replaced.

        Raises InvalidRequestError (a ValueError) if the vectors do not fit this model.
        """
        library = self._opened_library()
        with as_python_errors():
            definition = library.define_imported(concept, as_examples(pairs, prompts))
            return library.enter(definition, on_progress)

    def read(
        self, concept: ConceptName, given: str | Iterable[str] | Iterable[Mapping[str, str]]
    ) -> list[TextReadings]:
        """Reads how strongly a concept is present, without steering or generating.

        `given`: texts, which the model reads as answers to "Tell me something.", or the messages of one
        conversation, which may end with the assistant's. Returns an entry for each text, or one for the
        conversation. It has `mean` and `tokens`; each of these has `token` and `reading`. 0 and 1 are the
        means of the concept's negative and positive examples.

        Raises UnknownConceptError (a KeyError) or InvalidRequestError (a ValueError).
        """
        texts = [given] if isinstance(given, str | Mapping) else list(given)
        return self._open().read(name_of(concept), texts)

    @property
    def context_length(self) -> int:
        """Limit for prompt and answer together, in tokens."""
        return self._loaded().info.context_length

    def close(self) -> None:
        """Frees the model. Later calls raise EngineError. May be called again."""
        if self._model is not None:
            model, self._model = self._model, None
            del self._library, self._answering
            gc.collect()
            model.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise EngineError("this LLM is closed")
        return self._model

    def _open(self) -> Answering:
        self._loaded()
        return self._answering

    def _opened_library(self) -> Library:
        self._loaded()
        return self._library


def _concept_directory(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    return _SHIPPED if _SHIPPED.is_dir() else Path("configs/concepts")
