"""What the tests of the documentation do not run, and why. Everything else in a code block is run.

By page: how the command begins, or the block's first line. A test fails if an entry names nothing.
"""

_ENGINE = "needs a Docker engine; tests/test_dockerfile.py and tests/test_compose.py check the files"
_INSTALLS = "installs packages; tests/test_installation.py installs the wheel"
_MINUTES = "takes minutes"
_CLIENT = "needs a client's own packages; `make clients` installs and runs them"
_CLUSTER = "needs a cluster; tests/kubernetes renders the chart"
_ELSEWHERE = "tests/app/commands/test_documentation.py runs all commands of this page"

NOT_RUN: dict[str, dict[str, str]] = {
    "CONTRIBUTING.md": {
        ".venv/bin/python -m pytest": "runs these tests",
    },
    "README.md": {
        "python3 -m venv .venv": _INSTALLS,
        ".venv/bin/pip install --constraint constraints.txt --editable .": _INSTALLS,
        ".venv/bin/tiller chat": "a conversation in a terminal; tests/app/commands/chat holds some",
        ".venv/bin/tiller serve": "runs until it is stopped; all of tests/e2e start the server in this way",
        "docker build": _ENGINE,
        "docker run": _ENGINE,
    },
    "docs/api.md": {
        '{"error":': "tests/e2e/test_documentation.py compares it with an error",
    },
    "docs/architecture.md": {
        "client ": "a diagram",
    },
    "docs/clients.md": {
        "litellm": _CLIENT,
        "TILLER_URL=http://127.0.0.1:4000": _CLIENT,
        ".venv/bin/python -m examples.runner": _CLIENT,
    },
    "docs/command-line.md": {
        "tiller ": _ELSEWHERE,
        "echo ": _ELSEWHERE,
    },
    "docs/compose.md": {
        "docker compose": _ENGINE,
    },
    "docs/kubernetes.md": {
        "docker ": _ENGINE,
        "helm install": _CLUSTER,
        "kubectl ": _CLUSTER,
    },
    "docs/operations.md": {
        "2026-11-23T16:14:30.250Z": "a line of a log; tests/app/telemetry checks such lines",
    },
    "docs/performance.md": {
        ".venv/bin/tiller bench": f"{_MINUTES}; tests/app/bench runs the command",
        "python -m pip install --target wheels": "downloads packages; tests/benchmarks/test_gpu.py uses them",
    },
    "docs/scaling.md": {
        "                        Ray: head node": "a diagram",
        ".venv/bin/tiller cluster": "needs nodes; tests/e2e/test_cluster.py runs all of these commands",
        ".venv/bin/tiller registry": "needs a registry; tests/e2e/test_registry.py starts one",
        ".venv/bin/tiller serve --config tiller.yaml": "the same",
        "clients ": "a diagram",
        ".venv/bin/tiller worker serve": "runs until it is stopped, as in tests/e2e/test_standing_workers.py",
    },
}


def reason(page: str, text: str) -> str | None:
    """Why this command or block is not run. None: it is run."""
    found = [why for beginning, why in NOT_RUN.get(page, {}).items() if text.startswith(beginning)]
    return found[0] if found else None
