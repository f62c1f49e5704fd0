"""The state of a chat: the conversation so far, and how to answer. Knows no server and no terminal."""

import json
from dataclasses import dataclass, field

from app.commands.client import Json
from app.schemas.concepts import ID_PREFIX

Message = dict[str, str]


@dataclass
class Session:
    """The messages alternate between `user` and `assistant`, beginning with `user`."""

    model: str
    system: str | None = None
    concepts: dict[str, float] = field(default_factory=dict)
    """Full id of each steering concept -> its strength."""
    parameters: dict[str, object] = field(default_factory=dict)
    """The other fields of the request. The server has a default for each one that is missing."""
    messages: list[Message] = field(default_factory=list)

    @property
    def request(self) -> Json:
        """The body of a chat request for the next answer."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        steering = {"steering_concepts": list(self.concepts), "steering_strength": self.concepts}
        return {
            "model": self.model,
            "messages": [*system, *self.messages],
            **self.parameters,
            **(steering if self.concepts else {}),
        }

    @property
    def steering(self) -> str:
        """The steering in a few characters, such as `sentiment=-1 french=0.5`."""
        return " ".join(f"{short_name(concept)}={value:g}" for concept, value in self.concepts.items())

    def ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> str | None:
        """Removes the last question and its answer. Returns the question, or None if there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def as_json(self) -> str:
        """The last request with its answer as one more message, so that a client can continue."""
        return json.dumps(self.request, indent=2, ensure_ascii=False) + "\n"

    def as_text(self) -> str:
        """The conversation as Markdown."""
        facts = [f"Model: {self.model}"]
        if self.concepts:
            facts.append(f"Steering: {self.steering}")
        facts += [f"{name}: {json.dumps(value)}" for name, value in self.parameters.items()]
        parts = ["\n".join(f"- {fact}" for fact in facts)]
        parts += [f"## {message['role']}\n\n{message['content']}" for message in self.request["messages"]]
        return "\n\n".join(parts) + "\n"


def short_name(concept: str) -> str:
    return concept.removeprefix(ID_PREFIX)
