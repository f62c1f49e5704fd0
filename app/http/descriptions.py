"""Reads the docstrings below the fields of answers. pydantic does the same for the fields of requests."""

import ast
import inspect
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from msgspec import Struct
from msgspec.inspect import DictType, ListType, StructType, Type, UnionType, multi_type_info


def describe_fields(schemas: dict[str, Any], answers: Iterable[Any]) -> None:
    """Adds the docstrings as descriptions. `schemas`: JSON schemas of `answers`, by name of the struct."""
    for struct in {struct for kind in multi_type_info(answers) for struct in _structs(kind)}:
        texts = _docstrings(struct)
        for name, field in schemas[struct.__name__]["properties"].items():
            if name in texts:
                field["description"] = texts[name]


def _structs(kind: Type) -> Iterator[type]:
    """The struct classes that a value of this type is made of."""
    match kind:
        case StructType():
            yield kind.cls
            for field in kind.fields:
                yield from _structs(field.type)
        case ListType():
            yield from _structs(kind.item_type)
        case DictType():
            yield from _structs(kind.value_type)
        case UnionType():
            for option in kind.types:
                yield from _structs(option)


def _docstrings(struct: type) -> dict[str, str]:
    """The docstring of each field that has one, with those of the base classes."""
    texts: dict[str, str] = {}
    bases = [base for base in struct.__mro__ if issubclass(base, Struct) and base is not Struct]
    for base in reversed(bases):
        [definition] = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)  # noqa: S101 - for the type checker
        for statement, following in pairwise(definition.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts
