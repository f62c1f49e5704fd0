"""The command `tiller chat`: its options, and which kind of chat they ask for."""

import sys
from typing import Annotated

import typer

from app import __version__
from app.commands.chat.conversation import Conversation, write_answer
from app.commands.chat.parameters import read_assignment, read_concept
from app.commands.chat.screen import Screen
from app.commands.chat.server import ChatServer
from app.commands.chat.session import Session
from app.commands.client import LOCAL, Token, Url, connect_blocking, reporting_errors
from app.commands.completion import complete_concept, complete_model
from app.commands.errors import CommandError, UsageError
from app.commands.output import AsJson, print_json

Question = Annotated[
    str | None,
    typer.Argument(help="A single question. Without it: a conversation.", show_default=False),
]


def chat(
    question: Question = None,
    url: Url = LOCAL,
    token: Token = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to ask. Default: the first one that the server lists.", autocompletion=complete_model
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=STRENGTH]",
            help="Steer by a concept: -2 to 2. May be repeated.",
            autocompletion=complete_concept,
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a parameter, such as temperature=0.3. May be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Chat with the model of a running server.

    Without QUESTION, the question comes from stdin if that is a pipe or a file. Else a conversation begins;
    /help lists its commands. --json prints the server's answer to a single question.
    """
    with reporting_errors(), connect_blocking(url, token) as client:
        server, screen = ChatServer(client), Screen()
        is_single = question is not None or not sys.stdin.isatty()
        if as_json and not is_single:
            raise UsageError("--json needs a question")
        asked = (_read_stdin() if question is None else question) if is_single else ""
        session = Session(
            model or _first_model(server),
            system,
            dict(map(read_concept, concept or ())),
            dict(read_assignment(text, as_json) for text in parameter or ()),
        )
        if not is_single:
            screen.note(f"Tiller {__version__}: {session.model} at {url}. /help lists the commands.")
            Conversation(session, server, screen).run()
            return
        if not asked.strip():
            raise UsageError("the question is empty")
        session.ask(asked)
        if as_json:
            print_json(server.answer(session.request))
        else:
            write_answer(session, server, screen, [])


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError:
        raise CommandError("the question on stdin is not UTF-8") from None


def _first_model(server: ChatServer) -> str:
    models = server.models()
    if not models:
        raise CommandError("the server has no model")
    return models[0]
