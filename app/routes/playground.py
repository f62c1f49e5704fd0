"""GET /: the playground, a page to chat, steer and make concepts. It loads files from this server only.

The page and its files in app/playground hold no data, so they need no access token. The page's script sends
the access token that its user gives.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from app.http.auth import PLAYGROUND_FILES

router = APIRouter(include_in_schema=False)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        *("script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        "require-trusted-types-for 'script'",
    )
)
# Browsers ask each time whether a file has changed, so that page and script always have the same version.
_HEADERS = {"cache-control": "no-cache", "content-security-policy": _POLICY}


@router.get("/")
async def read_page(request: Request) -> Response:
    return await _read("index.html", request)


@router.get(PLAYGROUND_FILES + "{file:path}")
async def read_file(request: Request, file: str) -> Response:
    return await _read(file, request)


async def _read(file: str, request: Request) -> Response:
    """The file, or a 304 if the browser has it already. Raises HTTPException with the status 404."""
    response = await _files().get_response(file, request.scope)
    response.headers.update(_HEADERS)
    return response


@cache
def _files() -> StaticFiles:
    return StaticFiles(directory=Path(str(files("app"))) / "playground")
