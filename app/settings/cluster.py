"""The settings of a cluster, for `tiller cluster`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from app.settings.section import PositiveFloat, Section


def _check_not_below_min(most: int | None, info: ValidationInfo) -> int | None:
    if most is not None and most < info.data.get("min", 1):
        raise ValueError("must not be less than min")
    return most


class ScaleSettings(Section):
    """How many workers a model has in a cluster."""

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    """The least number of workers."""
    max: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        AfterValidator(_check_not_below_min),
    ] = None
    """The largest number of workers. None: always `min`."""

    @property
    def most(self) -> int:
        return self.min if self.max is None else self.max


class ClusterSettings(Section):
    """What `tiller cluster up` starts on the nodes of a Ray cluster, beside the workers."""

    gateways: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of gateways. The first on a node listens at `server.port`, the next at the port after it."""
    registry_port: Annotated[int, Field(ge=1, le=65535)] = 7100
    """TCP port of the registry, on the head node."""
    registry_host: Annotated[str, Field(min_length=1)] | None = None
    """Host name or address under which all nodes reach the head node. None: its address in Ray."""
    ray_authentication: Literal["token", "none"] = "token"
    """"token": only with a Ray cluster that asks for Ray's token. "none": also with one that does not."""
    grow_after_seconds: PositiveFloat = 5.0
    """A model gets one more worker when its requests have waited for this long without a break."""
    shrink_after_seconds: PositiveFloat = 60.0
    """A model loses a worker when half of the others' `engine.max_running` has been enough for this long."""
