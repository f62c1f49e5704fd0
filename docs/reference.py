"""Writes the reference in docs/python.md, from the docstrings of the package `tiller`.

.venv/bin/python docs/reference.py
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiller

PAGE = Path(__file__).parent / "python.md"
MARK = "<!-- The rest of this page comes from the docstrings: .venv/bin/python docs/reference.py -->\n"

METHODS = {
    tiller.LLM: (
        *("chat", "stream", "generate_many"),
        *("train", "concepts", "concept", "add", "read"),
        *("context_length", "close"),
    ),
    tiller.Concept: ("save", "load"),
}
OTHERS = (tiller.Options, tiller.Request, tiller.Condition, tiller.Answer, tiller.Concept)
ERRORS = (
    tiller.TillerError,
    tiller.InvalidRequestError,
    tiller.UnknownConceptError,
    tiller.EngineError,
    tiller.LoadError,
)


def render() -> str:
    """The reference, from MARK to the end of the page."""
    parts = [MARK, "## LLM", *_describe(tiller.LLM)]
    for one in OTHERS:
        parts += [f"## {one.__name__}", *_describe(one)]
    parts += ["## Errors", "\n".join(_item(_bases(error), _text(error)) for error in ERRORS)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _describe(one: type) -> Iterator[str]:
    yield _text(one)
    if one is tiller.LLM:
        yield f"```\n{_signature('LLM', one.__init__)}\n```"
        yield _text(one.__init__)
    if fields := _fields(one):
        yield "\n".join(_item(name, text) for name, text in fields.items())
    for name in METHODS.get(one, ()):
        member = inspect.getattr_static(one, name)
        if isinstance(member, property):
            yield f"### {one.__name__}.{name}"
            yield _text(member)
        else:
            function = inspect.unwrap(getattr(one, name))
            yield f"### {one.__name__}.{name}"
            yield f"```\n{_signature(name, function)}\n```"
            yield _text(function)


def _signature(name: str, function: Any) -> str:
    """As it stands in the source, without annotations of other modules and without `self`."""
    source = textwrap.dedent(inspect.getsource(function))
    [definition] = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)][:1]
    arguments = definition.args
    arguments.args = [argument for argument in arguments.args if argument.arg not in ("self", "cls")]
    returned = f" -> {ast.unparse(definition.returns)}" if definition.returns and name != "LLM" else ""
    text = f"{name}({ast.unparse(arguments)}){returned}"
    return textwrap.fill(text, 108, subsequent_indent="    ", break_on_hyphens=False)


def _fields(one: type) -> dict[str, str]:
    """The docstrings of a class's attributes."""
    if not (dataclasses.is_dataclass(one) or hasattr(one, "__struct_fields__")):
        return {}
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(one))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - for the type checker
    found: dict[str, str] = {}
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            found[node.target.id] = _clean(following.value.value) if is_text else ""
    return found


def _item(name: str, text: str) -> str:
    return textwrap.fill(f"- `{name}`: {text}", 110, subsequent_indent="  ", break_on_hyphens=False)


def _bases(error: type) -> str:
    others = [base.__name__ for base in error.__bases__ if base not in (tiller.TillerError, Exception)]
    return f"{error.__name__}({', '.join(others)})" if others else error.__name__


def _text(one: Any) -> str:
    return _clean(one.__doc__ or "")


def _clean(text: str) -> str:
    return inspect.cleandoc(text).strip()


def main() -> None:
    tutorial, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(tutorial + render())


if __name__ == "__main__":
    main()
