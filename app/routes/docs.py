"""GET /docs: a page for exploring the API. It loads its scripts and styles from this server only."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

from app.http.auth import PAGE_FILES

router = APIRouter(include_in_schema=False)

_CACHED = {"cache-control": "public, max-age=86400"}
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@router.get("/docs")
async def read_docs() -> Response:
    content, policy = _page()
    return Response(content, media_type="text/html", headers={"content-security-policy": policy})


async def read_file(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    return FileResponse(_directory() / name, headers=_CACHED)


for path in sorted(PAGE_FILES):
    router.add_api_route(path, read_file)


@cache
def _directory() -> Path:
    return Path(str(files("fastapi_offline"))) / "static"


@cache
def _page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy: only this server's files and the page's own inline script."""
    page = get_swagger_ui_html(
        title="Tiller",
        openapi_url="openapi.json",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )
    content = bytes(page.body)
    hashes = [
        base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(content)
    ]
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy
