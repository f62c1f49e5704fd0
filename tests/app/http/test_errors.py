"""Every error response is small, of one shape, and reveals nothing of the server's internals."""

import json
import logging

import pytest

from app.errors import ApiError, ErrorCode, InternalError, InvalidRequest, QueueFull, shorten
from app.http.errors import STATUS, ErrorResponse, error_body, for_caller


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_status_and_the_same_shape(code: ErrorCode) -> None:
    response = ErrorResponse(ApiError(code, "message", "field"))
    body = json.loads(bytes(response.body))
    assert response.status_code == STATUS[code]
    assert body["code"] == body["error"]["code"] == code.value
    assert body["error"]["param"] == "field"


@pytest.mark.parametrize("filling", ["x", '"', "\\", "\x00", "€", "😀"])
def test_a_body_stays_below_4_kb(filling: str) -> None:
    assert len(bytes(ErrorResponse(InvalidRequest(filling * 10**6, filling * 10**6)).body)) < 4096


@pytest.mark.parametrize(
    ("code", "header", "value"),
    [
        (ErrorCode.UNAUTHORIZED, "www-authenticate", "Bearer"),
        (ErrorCode.RATE_LIMITED, "retry-after", "1"),
        (ErrorCode.QUEUE_FULL, "retry-after", "1"),
        (ErrorCode.UNAVAILABLE, "retry-after", "1"),
    ],
)
def test_headers_that_go_with_a_status(code: ErrorCode, header: str, value: str) -> None:
    assert ErrorResponse(ApiError(code, "message")).headers[header] == value


def test_retry_after_varies_so_that_clients_do_not_all_return_at_once() -> None:
    reported = {ErrorResponse(QueueFull()).headers["retry-after"] for _ in range(200)}
    assert reported == {"1", "2", "3", "4"}


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), InternalError("/secret/path")])
def test_an_internal_error_is_logged_and_the_caller_gets_only_the_request_id(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reported = for_caller(error, "r42")
    assert "r42" in reported.message
    assert "secret" not in json.dumps(error_body(reported))
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("value", ["x" * 10**6, [[[[["x" * 10**6]]]]] * 10**4, {"x" * 10**6: 1}, 10**4000])
def test_given_values_are_shortened(value: object) -> None:
    assert len(shorten(value)) <= 100
