"""A chat in a terminal: reads a line, acts on it, reads the next. Knows no HTTP."""

from collections.abc import Sequence
from contextlib import closing

from app.commands.chat.orders import Orders
from app.commands.chat.prompt import Prompt
from app.commands.chat.screen import Screen
from app.commands.chat.server import ChatServer, Ending
from app.commands.chat.session import Session, short_name
from app.commands.errors import CommandError


class Conversation:
    def __init__(self, session: Session, server: ChatServer, screen: Screen) -> None:
        self._session, self._server, self._screen = session, server, screen
        self._orders = Orders(session, server, screen)

    def run(self) -> None:
        """Goes on until the user leaves."""
        prompt = Prompt(self._complete)
        interrupted = False
        while not self._orders.has_quit:
            try:
                line = prompt.read(f"{self._session.steering} > ".lstrip())
            except EOFError:
                self._screen.end_line()
                return
            except KeyboardInterrupt:
                self._screen.end_line()
                if interrupted:
                    return
                interrupted = True
                self._screen.note("Ctrl-C again, or Ctrl-D, leaves.")
                continue
            interrupted = self._act(line)

    def _complete(self, before: str) -> Sequence[str]:
        try:
            return self._orders.complete(before)
        except CommandError:
            return ()

    def _act(self, line: str) -> bool:
        """Carries out one line. Returns whether Ctrl-C has stopped that."""
        try:
            if line.startswith("/"):
                self._orders.run(line)
                question, self._orders.to_ask = self._orders.to_ask, None
            else:
                question = line.strip()
            if question:
                self._ask(question)
        except CommandError as error:
            self._screen.error(str(error))
        except KeyboardInterrupt:
            self._screen.note("[stopped; Ctrl-C again leaves]")
            return True
        return False

    def _ask(self, question: str) -> None:
        """Writes the answer. Keeps the part that has come, if something stops it."""
        self._session.ask(question)
        pieces: list[str] = []
        try:
            write_answer(self._session, self._server, self._screen, pieces)
        finally:
            text = "".join(pieces)
            if text:
                self._session.answer(text)
            else:  # the next question must not follow this one
                self._session.take_back()
            self._orders.unanswered = None if text else question
        if not text:
            self._screen.note("[the answer is empty]")


def write_answer(session: Session, server: ChatServer, screen: Screen, pieces: list[str]) -> None:
    """Writes the answer to the session's last question. Adds each piece to `pieces`. Raises CommandError."""
    ending = Ending()
    with closing(server.stream(session.request, ending)) as stream, closing(screen.answer(stream)) as shown:
        pieces.extend(shown)
    for concept, strength in ending.applied.items():
        screen.note(f"[{short_name(concept)} steers with {strength:g}, the most that is allowed]")
    if ending.finish_reason == "length":
        screen.note("[the answer has reached its limit of tokens]")
