"""The base class of request models: types are strict, `null` counts as absent, unknown fields are ignored."""

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from app.settings import Settings

_NULL = {"type": "null"}
_ANNOTATIONS = ("title", "description", "default", "deprecated")


def allow_null(schema: dict[str, Any]) -> None:
    """Changes the schema of a request model so that optional fields may be null."""
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
        hide_input_in_errors=True,  # an unexpected error is logged
        use_attribute_docstrings=True,
        json_schema_extra=allow_null,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


def rule_error(rule: str, given: object, *at: str | int) -> PydanticCustomError:
    """The error that a validator raises. The message is the field's path, `rule` and the value `given`.

    `at`: the path from the validated field to the value at fault.
    """
    return PydanticCustomError("broken", "{rule}", {"rule": rule, "given": given, "at": at})


def settings_of(info: ValidationInfo) -> Settings:
    """The operator's settings. The code that validates a request must pass them as the context."""
    return cast(Settings, info.context)
