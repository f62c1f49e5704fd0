"""Checks the Python packages."""

import sys
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from app import __version__
from app.commands.doctor.finding import Finding, ok, problem, warning

_INSTALL = ".venv/bin/pip install --constraint constraints.txt --editable . (in Tiller's directory)"


def check_packages(distribution: str = "tiller") -> Finding:
    """Whether every package is installed that Tiller requires, in a version that it works with."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return warning("Tiller is not installed as a package, so its requirements are unknown", _INSTALL)
    faults = list(filter(None, map(_fault, requirements)))
    if faults:
        return problem("; ".join(faults), _INSTALL)
    return ok(f"Tiller {__version__} and all packages that it needs, Python {sys.version.split()[0]}")


def _fault(text: str) -> str | None:
    """Why a requirement is not met. None: it is met, or is one of an extra."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"the requirement {text!r} cannot be read"
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} is {installed}, but Tiller needs {requirement.specifier}"
