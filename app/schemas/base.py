"""What all request models share: strict types, `null` counts as absent, other fields are ignored."""

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from app.settings import LimitSettings

_NULL = {"type": "null"}
_ANNOTATIONS = ("title", "description", "default", "deprecated")


def _allow_null(schema: dict[str, Any]) -> None:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name not in required and _refuses_null(field):
            annotations = {key: field.pop(key) for key in _ANNOTATIONS if key in field}
            schema["properties"][name] = {"anyOf": [field, _NULL], **annotations}


def _refuses_null(field: dict[str, Any]) -> bool:
    constrains = field.keys() & {"type", "anyOf", "$ref"}
    return bool(constrains) and field.get("type") != "null" and _NULL not in field.get("anyOf", ())


class RequestModel(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # An error that nobody has thought of ends in the log.
        use_attribute_docstrings=True,
        json_schema_extra=_allow_null,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


def broken(rule: str, given: object, *at: str | int) -> PydanticCustomError:
    """For validators to raise: `rule` says what "must be", `at` is the way from the field to the fault."""
    return PydanticCustomError("broken", "{rule}", {"rule": rule, "given": given, "at": at})


def limits_of(info: ValidationInfo) -> LimitSettings:
    """The operator's, which are the context of a validation that needs them."""
    return cast(LimitSettings, info.context)
