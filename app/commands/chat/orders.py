"""The commands inside a chat, such as `/concept sentiment -1`. Each changes the session, or shows it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.commands.chat.parameters import PARAMETERS, check_name, describe, read_strength, read_value
from app.commands.chat.screen import Screen
from app.commands.chat.server import ChatServer, list_names
from app.commands.chat.session import Session, short_name
from app.commands.concept_client import describe_state, write_bytes
from app.commands.errors import CommandError
from app.schemas.concepts import full_id

_OFF = "off"


@dataclass(frozen=True)
class Order:
    usage: str
    help: str
    act: Callable[[str], None]
    """Gets the rest of the line. Raises CommandError."""
    words: Callable[[], Sequence[str]] = tuple
    """The words that may come first after the command, for completion."""


class Orders:
    def __init__(self, session: Session, server: ChatServer, screen: Screen) -> None:
        self._session, self._server, self._screen = session, server, screen
        self._saved: set[Path] = set()
        self.to_ask: str | None = None
        """A question that is to be asked next. The caller takes it."""
        self.unanswered: str | None = None
        """The last question, if it has no answer. The caller sets it."""
        self.has_quit = False
        orders = (
            Order("/concept", "list the concepts", self._concept, self._concept_words),
            Order("/concept NAME [STRENGTH]", "steer the next answers: -2 to 2", self._concept),
            Order("/concept [NAME] off", "steer no more", self._concept),
            Order("/model [NAME]", "list the models, or choose one", self._model, self._server.models),
            Order("/system [TEXT | off]", "show, set or remove the system message", self._system),
            Order("/set", "list the parameters", self._set, lambda: PARAMETERS),
            Order("/set NAME VALUE | off", "such as /set temperature 0.3", self._set),
            Order("/retry", "ask the last question again", self._retry),
            Order("/undo", "forget the last question and its answer", self._undo),
            Order("/clear", "forget the whole conversation", self._clear),
            Order("/save FILE", "write the conversation: .json, or else Markdown", self._save),
            Order("/help", "show this list", self._help),
            Order("/quit", "leave; so do Ctrl-D and two times Ctrl-C", self._quit),
        )
        self._orders = orders
        self._by_name = {order.usage.split()[0]: order for order in reversed(orders)}

    def run(self, line: str) -> None:
        """`line`: begins with a slash. Raises CommandError."""
        name, _, rest = line.strip().partition(" ")
        order = self._by_name.get(name)
        if order is None:
            raise CommandError(
                f"there is no command {name}; /help lists them. A message that begins with / needs a space "
                "before it"
            )
        order.act(rest.strip())

    def complete(self, before: str) -> Sequence[str]:
        """The words that may follow `before`."""
        match before.split():
            case []:
                return list(self._by_name)
            case [name] if order := self._by_name.get(name):
                return order.words()
        return ()

    def _concept_words(self) -> list[str]:
        return [short_name(card["id"]) for card in self._server.concepts()]

    def _concept(self, given: str) -> None:
        match given.replace("=", " ").split():
            case []:
                self._list_concepts()
            case ["off"]:
                self._session.concepts.clear()
            case [name, "off"]:
                if self._session.concepts.pop(full_id(name), None) is None:
                    raise CommandError(f"{name} does not steer")
            case [name]:
                self._steer(name, 1.0)
            case [name, strength]:
                self._steer(name, read_strength(strength))
            case _:
                raise CommandError("/concept needs a name and a strength, such as /concept sentiment -1")

    def _list_concepts(self) -> None:
        rows = []
        for card in self._server.concepts(self._session.model):
            strength = self._session.concepts.get(card["id"])
            shown = "" if strength is None else f"{strength:g}"
            rows.append((short_name(card["id"]), shown, describe_state(card), card["description"]))
        self._screen.table(("concept", "strength", "state", "description"), rows)

    def _steer(self, name: str, strength: float) -> None:
        cards = {card["id"]: card for card in self._server.concepts(self._session.model)}
        card = cards.get(full_id(name))
        if card is None:
            raise CommandError(
                f"there is no concept {name}; there {list_names(list(map(short_name, cards)))}"
            )
        if card["state"] == "failed":
            reason = self._server.concept(card["id"], self._session.model)["error"]
            raise CommandError(f"{name} cannot be used: {reason}")
        self._session.concepts[card["id"]] = strength
        if card["state"] != "ready":
            self._screen.note(f"{name} is not trained yet ({card['state']}): the next answer waits for that.")

    def _model(self, given: str) -> None:
        models = self._server.models()
        if not given:
            self._screen.table(
                ("", "model"), [("*" * (name == self._session.model), name) for name in models]
            )
        elif given in models:
            self._session.model = given
        else:
            raise CommandError(f"there is no model {given}; there {list_names(models)}")

    def _system(self, given: str) -> None:
        if given:
            self._session.system = None if given == _OFF else given
        else:
            self._screen.note(self._session.system or "There is no system message.")

    def _set(self, given: str) -> None:
        name, _, value = given.replace("=", " ", 1).partition(" ")
        if not name:
            values = self._session.parameters
            rows = [
                (name, json.dumps(values[name]) if name in values else "", describe(name))
                for name in PARAMETERS
            ]
            self._screen.table(("parameter", "value", "meaning"), rows)
        elif not value.strip():
            raise CommandError(f"/set {name} needs a value, such as /set temperature 0.3, or off")
        elif value.strip() == _OFF:
            self._session.parameters.pop(check_name(name), None)
        else:
            self._session.parameters[check_name(name)] = read_value(value.strip())

    def _retry(self, _given: str) -> None:
        question = self.unanswered or self._session.take_back()
        if question is None:
            raise CommandError("there is no question to ask again")
        self.to_ask = question

    def _undo(self, _given: str) -> None:
        question = self._session.take_back()
        if question is None:
            raise CommandError("there is nothing to undo")
        self._screen.note(f"Forgotten: {question}")

    def _clear(self, _given: str) -> None:
        self._session.messages.clear()
        self._screen.note("The conversation is empty.")

    def _save(self, given: str) -> None:
        if not given:
            raise CommandError("/save needs a file, such as /save chat.md")
        file = Path(given).expanduser()
        if file.exists() and file not in self._saved:
            raise CommandError(f"{file}: already exists")
        text = self._session.as_json() if file.suffix == ".json" else self._session.as_text()
        write_bytes(file, text.encode(errors="backslashreplace"))
        self._saved.add(file)
        self._screen.note(f"Saved to {file}.")

    def _help(self, _given: str) -> None:
        self._screen.table(("command", "what it does"), [(order.usage, order.help) for order in self._orders])
        self._screen.note("A line that ends with \\ goes on in the next line. Ctrl-C stops an answer.")

    def _quit(self, _given: str) -> None:
        self.has_quit = True
