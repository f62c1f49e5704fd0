"""The documentation's site: it builds, its links lead somewhere, and it loads nothing from elsewhere."""

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from docs import build_site, http_reference
from docs.build_site import DOCS, PAGES, ROOT, Site

DOCUMENT = http_reference.read_document()
FIELDS = [
    pytest.param(name, field, described, id=f"{name}.{field}")
    for name, schema in DOCUMENT["components"]["schemas"].items()
    for field, described in schema.get("properties", {}).items()
]


class Elements(HTMLParser):
    """The links of a page, and what it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.append(str(given["src"]))
        if tag == "link":
            self.loaded.append(str(given["href"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("build")
    assert build_site.build(target) == 0
    return target / "site"


def navigation(entries: list[dict[str, Any]]) -> list[str]:
    """The pages in this part of the navigation."""
    found: list[str] = []
    for entry in entries:
        for value in entry.values():
            found += navigation(value) if isinstance(value, list) else [value]
    return found


def test_each_page_is_in_the_navigation() -> None:
    config = tomllib.loads((DOCS / "zensical.toml").read_text())
    expected = {*PAGES.values(), "http-reference.md", "source/index.md"}
    assert sorted(navigation(config["project"]["nav"])) == sorted(expected)


def test_each_page_is_built(site: Path) -> None:
    for name in PAGES.values():
        assert (site / name).with_suffix(".html").is_file()


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Elements(page.read_text()).loaded
        assert loaded
        assert [url for url in loaded if re.match(r"(\w+:)?//", url)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style


def test_links_lead_to_files_of_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in Elements(page.read_text()).links:
            path = link.partition("#")[0].partition("?")[0]
            if path and not re.match(r"\w+:", path) and page.name != "404.html":
                assert (page.parent / path).exists(), f"{page}: {link}"


def test_the_search_finds_all_pages(site: Path) -> None:
    items = json.loads((site / "search.json").read_text())["items"]
    found = {item["location"].partition("#")[0].removesuffix("index.html") for item in items}
    assert {"api.html", "migration.html", "http-reference.html", "source/configs-gpu.yaml.html"} <= found
    assert any("prefix cache" in item["text"] for item in items)


def test_the_search_finds_names_of_fields_and_no_source_code(site: Path) -> None:
    index = json.loads((site / "search.json").read_text())
    assert re.split(index["config"]["separator"], "`steering_when` is a") == ["", "steering_when", "is", "a"]
    places = [item["location"].split("-")[0] for item in index["items"]]
    assert [place for place in places if place in {f"source/{folder}" for folder in build_site.CODE}] == []


def test_code_in_tables_has_no_backslash(site: Path) -> None:
    assert "<code>&lt;|im_end|&gt;</code>" in (site / "api.html").read_text()


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """What Site makes of a page with this text."""
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr(build_site, "PAGES", {page: "page.md", DOCS / "api.md": "api.md"})
    Site(tmp_path / "prepared").prepare()
    return (tmp_path / "prepared" / "page.md").read_text()


def test_a_link_to_something_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.md"):
        prepared(tmp_path, monkeypatch, "[text](missing.md#part)")


def test_links_are_for_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = f"[a]({DOCS}/api.md#errors) [b]({ROOT}/configs/gpu.yaml) [c](https://example.org) [d](#here)"
    made = prepared(tmp_path, monkeypatch, f"{links}\n```\n[e](f.md)\n```\n")
    assert "[a](api.md#errors) [b](source/configs-gpu.yaml.md) [c](https://example.org) [d](#here)" in made
    assert "[e](f.md)" in made, "code stays as it is"


def test_pictures_in_html_are_for_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = f'<a href="{DOCS}/api.md#errors"><img src="{DOCS}/growth.svg" width="600"></a>'
    made = prepared(tmp_path, monkeypatch, html)
    assert '<a href="api.md#errors"><img src="growth.svg" width="600"></a>' in made
    assert (tmp_path / "prepared" / "growth.svg").is_file()


@pytest.mark.parametrize(("name", "field", "described"), FIELDS)
def test_each_field_of_the_api_is_described(name: str, field: str, described: dict[str, Any]) -> None:
    assert described.get("description", "").strip()


def test_the_http_reference_has_all_routes_fields_and_objects() -> None:
    page = http_reference.render(DOCUMENT)
    for path, operations in DOCUMENT["paths"].items():
        for method in operations:
            assert f"\n## {method.upper()} {path}\n" in page
    for name, schema in DOCUMENT["components"]["schemas"].items():
        part = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert [field for field in schema.get("properties", {}) if f"| `{field}` |" not in part] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 16}, "integer, 1 to 16"),
        ({"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}, "number, at least 0"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Choice"}}, "array of [Choice](#choice)"),
        ({"enum": ["a", "b"]}, "`a` or `b`"),
        (
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "string or array of string",
        ),
    ],
)
def test_types_in_words(schema: dict[str, Any], words: str) -> None:
    assert http_reference._type(schema) == words
