"""Checks the packages of OpenTelemetry, if traces are configured."""

from app.commands.doctor.finding import Finding, ok, problem
from app.errors import StartError
from app.settings import Settings
from app.telemetry.tracing import check_packages


def check_tracing(settings: Settings) -> Finding:
    try:
        enabled_by = check_packages(settings.tracing)
    except StartError as error:
        what, _, mend = str(error).partition(": ")
        return problem(what, mend)
    return ok("off" if enabled_by is None else f"on, by {enabled_by}")
