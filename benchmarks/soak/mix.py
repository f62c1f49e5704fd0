"""Random requests of several kinds, and how each should end. Pure."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.bench.prompts import Prompts

Body = dict[str, Any]

_REUSE = 0.25
_REMEMBERED = 8
"""Number of prompts that may be sent again, so that there are prefix cache hits."""


@dataclass(frozen=True)
class Ask:
    """One request."""

    kind: str
    body: Body
    status: int = 200
    """The expected HTTP status."""
    leaves_after: float | None = None
    """The client disconnects after this many seconds, or after this many pieces of a stream."""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class _Kind:
    weight: int
    build: "Callable[[Mix], Ask]"


class Mix:
    """An endless sequence of requests, the same for the same seed."""

    def __init__(self, model: str, concepts: Sequence[str], seed: int) -> None:
        """If `concepts` is empty, no request is steered."""
        self.model = model
        self.concepts = concepts
        self.random = random.Random(seed)
        self._prompts = Prompts(seed)
        self._remembered: list[str] = []
        self._kinds = {name: kind for name, kind in _KINDS.items() if concepts or name != "steered"}

    def each_once(self) -> Iterator[Ask]:
        """One request of each kind."""
        return (kind.build(self) for kind in self._kinds.values())

    def steered_by_each(self) -> Iterator[Ask]:
        """One request for each concept. After them, all concepts are trained."""
        return (
            Ask("steered", self.body(_SHORT, _BRIEF, steering_concepts=[concept]))
            for concept in self.concepts
        )

    def __iter__(self) -> "Mix":
        return self

    def __next__(self) -> Ask:
        weights = [kind.weight for kind in self._kinds.values()]
        [kind] = self.random.choices(list(self._kinds.values()), weights)
        return kind.build(self)

    def body(self, words: tuple[int, int], tokens: tuple[int, int], **fields: object) -> Body:
        """A chat request. `words` of its prompt and `tokens` of its answer: from least to most."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self._prompt(self.random.randint(*words))}],
            "max_tokens": self.random.randint(*tokens),
            **fields,
        }

    def _prompt(self, words: int) -> str:
        if self._remembered and self.random.random() < _REUSE:
            return self.random.choice(self._remembered)
        prompt = self._prompts.draw(words)
        self._remembered = [*self._remembered, prompt][-_REMEMBERED:]
        return prompt


_SHORT, _LONG = (4, 40), (300, 900)  # words
_BRIEF, _FULL = (1, 16), (16, 64)  # tokens


def _short(mix: Mix) -> Ask:
    return Ask("short, streamed", mix.body(_SHORT, _FULL, stream=True))


def _short_whole(mix: Mix) -> Ask:
    return Ask("short, whole", mix.body(_SHORT, _FULL))


def _long(mix: Mix) -> Ask:
    return Ask("long, streamed", mix.body(_LONG, _BRIEF, stream=True))


def _long_whole(mix: Mix) -> Ask:
    return Ask("long, whole", mix.body(_LONG, _BRIEF))


def _elaborate(mix: Mix) -> Ask:
    fields: Body = {
        "n": 2,
        "top_logprobs": 5,
        "stop": ["\n\n", "the end"],
        "presence_penalty": 0.5,
        "top_p": 0.9,
    }
    return Ask(
        "choices and log probabilities", mix.body(_SHORT, _FULL, stream=mix.random.random() < 0.5, **fields)
    )


def _steered(mix: Mix) -> Ask:
    concepts = mix.random.sample(mix.concepts, mix.random.randint(1, min(2, len(mix.concepts))))
    strength = round(mix.random.uniform(-1, 1), 2)
    return Ask(
        "steered",
        mix.body(_SHORT, _FULL, stream=True, steering_concepts=concepts, steering_strength=strength),
    )


def _leaves_stream(mix: Mix) -> Ask:
    body = mix.body(_SHORT, (200, 400), stream=True)
    return Ask("client leaves a stream", body, leaves_after=mix.random.randint(1, 20))


def _leaves_wait(mix: Mix) -> Ask:
    body = mix.body(mix.random.choice((_SHORT, _LONG)), (200, 400))
    return Ask("client leaves while it waits", body, leaves_after=mix.random.uniform(0.05, 2))


def _invalid(mix: Mix) -> Ask:
    fault: Body = mix.random.choice(
        [
            {"temperature": 3},
            {"max_tokens": 0},
            {"messages": []},
            {"tools": [{}]},
            {"logit_bias": {"99999999": 1}},
            {"max_tokens": 10**6},
        ]
    )
    return Ask("invalid", mix.body(_SHORT, _BRIEF) | fault, status=400)


def _unknown(mix: Mix) -> Ask:
    fault: Body = mix.random.choice([{"model": "nobody"}, {"steering_concepts": ["_worker/nobody"]}])
    return Ask("unknown", mix.body(_SHORT, _BRIEF) | fault, status=404)


_KINDS = {
    "short": _Kind(5, _short),
    "short whole": _Kind(3, _short_whole),
    "long": _Kind(2, _long),
    "long whole": _Kind(1, _long_whole),
    "elaborate": _Kind(2, _elaborate),
    "steered": _Kind(3, _steered),
    "leaves stream": _Kind(3, _leaves_stream),
    "leaves wait": _Kind(2, _leaves_wait),
    "invalid": _Kind(1, _invalid),
    "unknown": _Kind(1, _unknown),
}
