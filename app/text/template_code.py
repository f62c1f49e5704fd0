"""Reads and changes the code of a chat template: Jinja's syntax tree. Knows no messages."""

from collections.abc import Iterator, Mapping

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

_SEARCHES = frozenset(
    {
        *("count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix"),
        *("replace", "rfind", "rindex", "rpartition", "rsplit", "split", "startswith"),
    }
)
"""Methods of a string whose first argument is what they look for. `replace` is also a filter."""


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training. Here it renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def literals(code: nodes.Template) -> set[str]:
    """The strings in a template: in its code, and the text around the code."""
    texts = {node.data for node in code.find_all(nodes.TemplateData)}
    return texts | {node.value for node in code.find_all(nodes.Const) if isinstance(node.value, str)}


def replace_sought(code: nodes.Template, replacements: Mapping[str, str]) -> None:
    """Replaces strings within those that the template looks for, such as in `'</think>' in text`."""
    for constant in list(_sought(code)):
        for old, new in replacements.items():
            constant.value = constant.value.replace(old, new)


def _sought(code: nodes.Template) -> Iterator[nodes.Const]:
    for comparison in code.find_all(nodes.Compare):
        yield from _strings(comparison)
    for call in code.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES and call.args:
            yield from _strings(call.args[0])
    for used in code.find_all(nodes.Filter):
        if used.name in _SEARCHES and used.args:
            yield from _strings(used.args[0])


def _strings(node: nodes.Node) -> Iterator[nodes.Const]:
    found = [node] if isinstance(node, nodes.Const) else node.find_all(nodes.Const)
    yield from (constant for constant in found if isinstance(constant.value, str))
