"""What the operators' routes answer."""

from typing import Literal

import msgspec


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"] = "ok"
