"""The base class of all sections of the settings, and types that several of them use."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the settings. Frozen; refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

_Section = TypeVar("_Section", bound=Section)


def check_different(field: str) -> Callable[[tuple[_Section, ...]], tuple[_Section, ...]]:
    """A validator for several sections: no two may have the same value of `field`."""

    def check(sections: tuple[_Section, ...]) -> tuple[_Section, ...]:
        values = [getattr(section, field) for section in sections]
        if len(set(values)) < len(values):
            raise ValueError(f"must not have the same {field} twice")
        return sections

    return check
