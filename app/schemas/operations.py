"""The answers of the routes for operators."""

from typing import Literal

import msgspec


class Health(msgspec.Struct, frozen=True):
    """The answer of `GET /health` while the server can serve requests."""

    status: Literal["ok"] = "ok"
    """Always `ok`."""
