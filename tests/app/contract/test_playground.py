"""The route / and the files of the playground."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

import app

FOLDER = Path(app.__file__).parent / "playground"
FILES = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file())
SCRIPTS = [file for file in FILES if file.endswith(".js")]
IMPORT = re.compile(r'(?:^|;)import[\s{*][^"\';]*"([^"]+)"|\bimport\("([^"]+)"\)', re.MULTILINE)


class Page(HTMLParser):
    """Collects the elements of a page: `(tag, attributes)`, and the text in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.mark.parametrize("path", ["/", "/v1/"])
async def test_the_page_loads_only_files_that_there_are(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    elements = Page(response.text).elements
    files = [
        attributes.get("src") or attributes.get("href") or ""
        for tag, attributes in elements
        if tag in ("script", "link")
    ]
    assert "playground/main.js" in files
    for file in files:
        assert (await client.get(urljoin(path, file))).status_code == 200


async def test_the_policy_allows_no_inline_code_and_no_other_server(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "http" not in policy
    page = Page(response.text)
    assert page.inline == ""
    assert not [
        attributes for _, attributes in page.elements if "style" in attributes or "onclick" in attributes
    ]


@pytest.mark.parametrize(
    ("file", "media_type"),
    [("main.js", "text/javascript"), ("styles/base.css", "text/css"), ("icon.svg", "image/svg+xml")],
)
async def test_files_have_their_media_type(client: httpx.AsyncClient, file: str, media_type: str) -> None:
    response = await client.get(f"/playground/{file}")
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == media_type
    assert response.content == (FOLDER / file).read_bytes()


async def test_a_browser_asks_whether_a_file_has_changed(client: httpx.AsyncClient) -> None:
    first = await client.get("/playground/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/playground/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head("/playground/main.js")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "file",
    [
        "",
        "nothing.js",
        "../cli.py",
        "%2e%2e/cli.py",
        "..%2fcli.py",
        "vendor",
        "/etc/passwd",
        "%00",
        "a" * 5000,
    ],
)
async def test_there_is_nothing_else(client: httpx.AsyncClient, file: str) -> None:
    response = await client.get(f"/playground/{file}")
    assert response.status_code == 404
    assert response.json()["code"] == "NOT_FOUND"


async def test_the_files_cannot_be_changed(client: httpx.AsyncClient) -> None:
    for method in ("POST", "DELETE"):
        response = await client.request(method, "/playground/main.js")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_only_files_that_there_are(script: str) -> None:
    file = FOLDER / script
    for name in map("".join, IMPORT.findall(file.read_text("utf-8"))):
        assert name.startswith("."), f"{script} imports {name}, which a browser cannot find"
        assert (file.parent / name).is_file(), f"{script} imports {name}"


def test_the_pages_own_scripts_are_small() -> None:
    own = [file for file in SCRIPTS if not file.startswith("vendor/")]
    assert len(own) > 30
    assert [file for file in own if len((FOLDER / file).read_text("utf-8").splitlines()) > 200] == []
