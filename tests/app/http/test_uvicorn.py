"""The private parts of uvicorn that app/http/connection.py uses.

If a test fails after an update of uvicorn, compare app/http/connection.py with uvicorn's httptools_impl.py,
fix what changed, and only then raise the upper bound in pyproject.toml.
"""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"

OVERRIDDEN = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "data_received": ["self", "data"],
    "on_message_begin": ["self"],
    "on_headers_complete": ["self"],
    "on_body": ["self", "body"],
    "on_message_complete": ["self"],
    "on_response_complete": ["self"],
    "_unset_keepalive_if_required": ["self"],
}
ATTRIBUTES = ("connections", "cycle", "expect_100_continue", "flow", "headers", "loop", "parser", "pipeline")
ATTRIBUTES += ("scope", "transport", "url")
CYCLE_ATTRIBUTES = ("disconnected", "keep_alive", "message_event", "response_complete", "response_started")


def source_of(owner: type) -> str:
    """The source of a class, where its attributes are assigned."""
    return inspect.getsource(owner)


@pytest.mark.parametrize(("name", "parameters"), OVERRIDDEN.items())
def test_a_method_that_is_overridden_or_called_exists(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) == parameters


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_is_used_is_assigned(name: str) -> None:
    assert f"self.{name} = " in source_of(HttpToolsProtocol) or f"self.{name}: " in source_of(
        HttpToolsProtocol
    )


@pytest.mark.parametrize("name", CYCLE_ATTRIBUTES)
def test_an_attribute_of_a_cycle_is_assigned(name: str) -> None:
    assert f"self.{name} = " in source_of(RequestResponseCycle)


def test_flow_control_has_read_paused() -> None:
    assert "self.read_paused = " in source_of(FlowControl)


def test_uvicorn_has_no_callback_that_connection_would_hide() -> None:
    """connection.py adds on_chunk_header. If uvicorn had one too, connection.py would hide it."""
    assert not hasattr(HttpToolsProtocol, "on_chunk_header")


def test_the_version_is_bounded_from_above() -> None:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    [uvicorn] = [name for name in dependencies if name.startswith("uvicorn")]
    _, upper = uvicorn.split("<")
    assert tuple(map(int, version("uvicorn").split(".")[:2])) < tuple(map(int, upper.split(".")))
