"""The clients in examples/clients.yaml: what to install, what to run, and what the output must contain."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

EXAMPLES = Path(__file__).parents[1]
FOLDER = EXAMPLES / "clients"
_TABLE = EXAMPLES / "clients.yaml"
_INTERPRETERS = {".py": "python", ".mjs": "node"}

PythonPin = Annotated[str, Field(pattern=r"^[\w.-]+(\[\w+\])?==[\w.]+$")]
NpmPin = Annotated[str, Field(pattern=r"^(@[\w-]+/)?[\w-]+@[\d.]+$")]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClientServer(_Row):
    """A server between Tiller and its callers, such as a proxy. The commands of the client call it."""

    command: str
    health: str
    """Path that answers 200 when the server is ready."""
    token: str = "none"
    """What its callers send instead of Tiller's access token."""


class Client(_Row):
    """One client. `{url}`, `{token}`, `{folder}` and `{port}` in commands and the environment are replaced.

    They are Tiller's address and access token, the folder with the client's files, and a free port.
    """

    name: str
    python: list[PythonPin] = []
    npm: list[NpmPin] = []
    files: list[str] = Field(min_length=1)
    """In examples/clients. The first one is the example. All are copied into the client's folder."""
    helpers: list[str] = []
    """More files to copy, from examples/runner."""
    compose: str = ""
    """A file of Docker Compose: the environment of its only service is the client's, too."""
    environment: dict[str, str] = {}
    server: ClientServer | None = None
    commands: list[str] = []
    """Default: run the example with Python or Node."""
    strengths: list[float] = [0, -1]
    """The output must contain the answers that Tiller gives at these strengths."""
    shows: str = ""
    """A regular expression that the output must match."""
    outputs: str = ""
    """A glob of files whose texts count as output."""
    lenient: bool = False
    """Whether the server needs `api.strict: false`."""

    @property
    def version(self) -> str:
        return (self.python or self.npm)[0].replace("==", "@").rpartition("@")[2]

    @property
    def command_lines(self) -> list[str]:
        example = Path(self.files[0])
        return self.commands or [f"{_INTERPRETERS[example.suffix]} {example.name}"]

    @property
    def remark(self) -> str:
        """What the table says about a client that works."""
        if self.lenient:
            return "api.strict: false"
        return "steers" if any(self.strengths) else "cannot steer"


def load_clients() -> dict[str, Client]:
    """All clients by name, in the order of the file."""
    rows = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return {name: Client(name=name, **row) for name, row in rows.items()}
