"""Which tests run which blocks."""

import re
from enum import Enum

from tests.documentation.blocks import SHELL, Block, blocks_of

REFERENCE = re.compile(r"^[\w.]+\(")
"""How the signatures in docs/python.md begin."""


class Runner(Enum):
    SERVER = "tests/e2e/test_documentation.py"
    PYTHON_API = "tests/tiller/test_documentation.py"
    STATIC = "tests/test_documentation.py"


def runner_of(block: Block) -> Runner | None:
    """None: no test runs such a block."""
    match block.language:
        case "python":
            return Runner.PYTHON_API if _uses_the_python_api(block) else Runner.SERVER
        case "yaml":
            return Runner.STATIC
        case "json":
            return Runner.SERVER
        case language if language in SHELL:
            return Runner.SERVER
        case "" if block.text.startswith("data: "):
            return Runner.SERVER
        case "" if block.page == "docs/python.md" and REFERENCE.match(block.text):
            return Runner.PYTHON_API
    return None


def _uses_the_python_api(block: Block) -> bool:
    return block.page == "docs/python.md" or "from tiller import" in block.text


def python_api(page: str) -> list[str]:
    """The programs of the page that use the package `tiller`."""
    found = [block for block in blocks_of(page) if runner_of(block) is Runner.PYTHON_API]
    return [block.text for block in found if block.language == "python"]
