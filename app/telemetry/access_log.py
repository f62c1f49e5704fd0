"""Logs one line for each answered request. Holds its texts only if the operator enables that."""

import logging

from app.telemetry.observation import PROBED_ROUTES, Observation

_log = logging.getLogger("tiller.access")

_LINE = "%(method)s %(route)s %(status)s"


def log_request(seen: Observation) -> None:
    """Logs one answered request."""
    # Successful probes are frequent and uninteresting, so they need the level DEBUG.
    level = logging.DEBUG if seen.route in PROBED_ROUTES and seen.status == 200 else logging.INFO
    if not _log.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "seconds": round(seen.seconds, 6),
        "request_id": seen.request_id,
        "client_request_id": seen.client_request_id,
        "trace_id": seen.trace_id,
        "token": seen.token,
        "error": seen.error,
        **_chat_fields(seen),
        "messages": seen.messages,
        "answers": seen.answers,
    }
    record_fields = {name: value for name, value in fields.items() if value is not None}
    line = {"method": seen.method, "route": seen.route, "status": seen.status}
    # Not _log.log: it also looks up the calling frame, which costs more than everything else here.
    record = logging.LogRecord(_log.name, level, __file__, 0, _LINE, (line,), None)
    record.fields = record_fields
    _log.handle(record)


def log_refusal(method: str, route: str, status: int) -> None:
    """Logs a request that was refused before it was complete, such as one with too large headers."""
    _log.info(_LINE, {"method": method, "route": route, "status": status})


def _chat_fields(seen: Observation) -> dict[str, object]:
    if seen.generation_request is None:
        return {}
    return {
        "model": seen.model,
        "prompt_tokens": len(seen.generation_request.prompt_token_ids),
        "completion_tokens": seen.usage.completion_tokens if seen.usage else 0,
        "queue_seconds": _rounded(seen.queue_seconds),
        "first_token_seconds": _rounded(seen.first_token_seconds),
        "finish_reasons": seen.finish_reasons,
        "concepts": seen.concepts,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
