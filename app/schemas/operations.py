"""The answers of the routes for operators."""

from typing import Literal

import msgspec


class Health(msgspec.Struct, frozen=True):
    """The answer of `GET /live`, `GET /ready` and `GET /health` if all is well."""

    status: Literal["ok"] = "ok"
    """Always `ok`."""
