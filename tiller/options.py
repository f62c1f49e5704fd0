"""What a caller may ask for, and how it becomes a ChatRequest. The ChatRequest checks it."""

import inspect
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Required, TypeAlias, TypedDict, TypeVar

from app.errors import InvalidRequest, shorten
from app.schemas.chat import ChatRequest
from app.settings import Settings
from tiller.concept import Concept, name_of

ConceptName: TypeAlias = str | Concept
"""A concept, or its name."""

Messages: TypeAlias = str | Iterable[Mapping[str, str]]
"""A user's message, or a conversation of messages such as `{"role": "user", "content": "Hello"}`."""


class Condition(TypedDict, total=False):
    """Steers the answer only if a concept's mean reading over the prompt is in a range.

    - `concept`: the concept that is read, or its name.
    - `above`, `below`: the reading must be greater and less than these numbers. One of them must be given.
    """

    concept: Required[ConceptName]
    above: float | None
    below: float | None


class Options(TypedDict, total=False):
    """How to answer a request. All options are optional, and None counts as not given.

    - `max_tokens`: the longest answer, in tokens. Default: 256, or what the context leaves after the prompt.
    - `temperature`: divides the logits, from 0 to 2. 0 always takes the most likely token. Default: 1.
    - `top_p`: samples from the fewest most likely tokens whose probabilities add up to this. Default: 1.
    - `top_k`: samples from this many most likely tokens. Default: from all.
    - `stop`: a text or several, up to 16. The answer ends before the first one that appears.
    - `frequency_penalty`, `presence_penalty`: -2 to 2, subtracted from the logit of a token for each time, or
      once if, the answer contains it. Default: 0.
    - `logit_bias`: maps token ids to numbers that are added to their logits. -100 bans a token.
    - `logprobs`: True, or a number up to 20: log probabilities of the answer's tokens, and of this many most
      likely tokens at each position.
    - `steering`: maps concepts to strengths, from -2 to 2. At most 16 concepts. Concepts that have not been
      trained yet are trained first.
    - `scope`: what is steered: the `"prompt"`, the `"answer"`, or `"all"`. Default: `"all"`.
    - `mode`: what is done to the activations: `"add"` adds the concept's vector times the strength,
      `"ablate"` removes the component along it, `"clamp"` replaces this component. Default: `"add"`.
    - `when`: a Condition. Without it, the answer is always steered.
    - `readings`: the concepts to read at each token of the answer. At most 16.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: str | Collection[str] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    logprobs: bool | int | None
    steering: Mapping[ConceptName, float] | None
    scope: Literal["all", "prompt", "answer"] | None
    mode: Literal["add", "ablate", "clamp"] | None
    when: Condition | None
    readings: ConceptName | Collection[ConceptName] | None


class Request(Options, total=False):
    """One of many requests: `messages`, as in `LLM.chat`, and Options. It is an ordinary dictionary."""

    messages: Required[Messages]


Method = TypeVar("Method", bound=Callable[..., Any])


def shows_options(method: Method) -> Method:
    """Lists each of the Options in a method's signature, so that notebooks complete their names."""
    signature = inspect.signature(method)
    *others, last = signature.parameters.values()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in Options.__annotations__.items()
    ]
    assert last.kind is inspect.Parameter.VAR_KEYWORD  # noqa: S101 - a mistake in this package
    method.__signature__ = signature.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
    return method


def chat_request(request: Mapping[str, Any], n: int | None, settings: Settings) -> ChatRequest:
    """Raises pydantic's ValidationError, InvalidRequest, and TypeError for an unknown option."""
    if unknown := request.keys() - Request.__annotations__.keys():
        raise TypeError(
            f"{min(unknown)!r} is not an option; the options are {', '.join(Options.__annotations__)}"
        )
    given = {name: _plain(value) for name, value in request.items() if value is not None}
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in given.items()}
    fields["model"] = settings.model.name
    fields["n"] = n
    fields["messages"] = _messages(given.get("messages"))
    for name, convert in _CONVERSIONS.items():
        if name in given:
            fields |= convert(given[name])
    return ChatRequest.model_validate(fields, context=settings)


_FIELDS = {"scope": "steering_scope", "mode": "steering_mode"}
"""The options that only have another name in a ChatRequest."""


def _plain(given: Any) -> Any:
    """A number of NumPy, for example, as one of Python's own; in a mapping, too."""
    if isinstance(given, Mapping):
        return {key: _plain(value) for key, value in given.items()}
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        return given
    return int(given) if isinstance(given, numbers.Integral) else float(given)


def _messages(given: Any) -> Any:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return _as_list(given)


def _steering(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"steering must map concepts to strengths, got {shorten(given)}", "steering")
    strengths = {str(name_of(concept)): strength for concept, strength in given.items()}
    if len(strengths) < len(given):
        raise InvalidRequest("steering must name each concept once", "steering")
    return {"steering_concepts": list(strengths), "steering_strength": strengths}


def _readings(given: Any) -> dict[str, Any]:
    named = [given] if isinstance(given, str | Concept) else _as_list(given)
    return {
        "steering_readings": [name_of(concept) for concept in named] if isinstance(named, list) else named
    }


def _when(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping) and "concept" in given:
        given = {**given, "concept": name_of(given["concept"])}
    return {"steering_when": given}


def _logprobs(given: Any) -> dict[str, Any]:
    return {"logprobs": given} if isinstance(given, bool) else {"logprobs": True, "top_logprobs": given}


def _stop(given: Any) -> dict[str, Any]:
    return {"stop": _as_list(given)}


def _logit_bias(given: Any) -> dict[str, Any]:
    return {
        "logit_bias": {str(key): bias for key, bias in given.items()} if isinstance(given, Mapping) else given
    }


def _as_list(given: Any) -> Any:
    """Any collection but a text as a list, as JSON has it."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else given


_CONVERSIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "steering": _steering,
    "readings": _readings,
    "when": _when,
    "logprobs": _logprobs,
    "stop": _stop,
    "logit_bias": _logit_bias,
}
