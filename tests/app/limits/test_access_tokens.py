"""Access tokens in a file: created and revoked while the server runs, never accepted by mistake."""

import asyncio
import hashlib
import json
import logging
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import build_commands
from app.configuration import SettingsError, load_settings
from app.limits.access_tokens import AccessTokenFile, AccessTokenFileError, AccessTokens, load_access_tokens
from app.main import create_app
from app.settings import AccessScope, AccessToken
from inference.interface.logs import JsonFormatter, TextFormatter
from tests.app.command_line import assert_one_line
from tests.app.contract.conftest import client_of
from tests.app.fakes import FakeEngine


def token(secret: str = "secret", **fields: object) -> AccessToken:
    return AccessToken(name=secret, sha256=hashlib.sha256(secret.encode()).hexdigest(), **fields)


@pytest.fixture
def file(tmp_path: Path) -> AccessTokenFile:
    return AccessTokenFile(tmp_path / "data" / "tokens.json")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's configuration file, with its data directory next to it."""
    monkeypatch.delenv("TILLER_DATA_DIRECTORY")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"data_directory": str(tmp_path / "data")}))
    return config


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(build_commands(), ["token", *map(str, words)])


def create_token(*words: object) -> str:
    """Creates an access token and returns the secret."""
    done = run("new", *words)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout.splitlines()[0].removeprefix("Token: ")


def test_a_written_file_can_be_read_back(file: AccessTokenFile) -> None:
    assert file.read() == ()
    tokens = (token("a"), token("b", expires="2030-01-01", scopes=["chat"], max_requests=3))
    file.write(tokens)
    assert file.read() == tokens
    assert file.read()[1].expires == datetime(2030, 1, 1, tzinfo=UTC)


def test_only_the_owner_can_read_the_file_and_it_holds_no_secret(config: Path, file: AccessTokenFile) -> None:
    secret = create_token("ada", "--config", config)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert secret not in file.path.read_text()
    assert secret.removeprefix("tiller_") not in file.path.read_text()
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "a"}', b'[{"name": "a"}]', b"\xff", b"[1]"])
def test_an_invalid_file_is_an_error_of_one_line(file: AccessTokenFile, content: bytes) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    with pytest.raises(AccessTokenFileError, match=r"tokens\.json: ") as error:
        AccessTokens([], file)
    assert "\n" not in str(error.value)


def test_the_server_accepts_everybody_until_there_is_an_access_token(file: AccessTokenFile) -> None:
    tokens = AccessTokens([], file)
    assert not tokens.required
    file.write([token()])
    tokens.refresh()
    assert tokens.required
    assert tokens.find("secret") == token()


def test_a_running_server_never_stops_requiring_access_tokens(file: AccessTokenFile) -> None:
    file.write([token()])
    tokens = AccessTokens([], file)
    for change in (lambda: file.write([]), file.path.unlink):
        change()
        tokens.refresh()
        assert tokens.required
        assert tokens.find("secret") is None
    assert not AccessTokens([], file).required
    file.write([])
    assert AccessTokens([], file).required


def test_a_file_that_becomes_invalid_changes_nothing_and_is_reported_once(
    file: AccessTokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.write([token()])
    tokens = AccessTokens([], file)
    file.path.write_text("nonsense")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            tokens.refresh()
    assert tokens.find("secret") == token()
    assert len(caplog.records) == 1
    file.write([token("new")])
    tokens.refresh()
    assert tokens.find("secret") is None
    assert tokens.find("new") == token("new")


def test_tokens_of_the_configuration_stay_when_the_file_changes(file: AccessTokenFile) -> None:
    tokens = AccessTokens([token("configured")], file)
    file.write([token("created")])
    tokens.refresh()
    assert tokens.find("configured")
    assert tokens.find("created")
    file.write([])
    tokens.refresh()
    assert tokens.find("configured")


async def status(client: httpx.AsyncClient, secret: str) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    return (await client.get("/models", headers=headers)).status_code


async def test_tokens_are_created_and_revoked_while_the_server_runs(config: Path, engine: FakeEngine) -> None:
    first = create_token("ada", "--config", config)
    settings = load_settings(config, model={"name": "tiny"}, server={"host": "0.0.0.0"})
    async with client_of(create_app(settings, {"tiny": engine})) as client:
        assert await status(client, first) == 200
        second = await asyncio.to_thread(create_token, "bob", "--config", config)
        assert [await status(client, secret) for secret in (first, second, "x")] == [200, 200, 401]
        assert run("revoke", "ada", "--config", config).exit_code == 0
        assert [await status(client, secret) for secret in (first, second)] == [401, 200]
        assert run("revoke", "bob", "--config", config).exit_code == 0
        assert [await status(client, secret) for secret in (first, second)] == [401, 401]
        assert (await client.get("/models")).status_code == 401


def test_the_first_access_token_comes_with_a_warning(config: Path) -> None:
    warnings = [
        "callers without an access token are now refused" in run("new", name, "--config", config).stdout
        for name in ("ada", "bob")
    ]
    assert warnings == [True, False]


def test_a_token_has_the_given_options(config: Path, file: AccessTokenFile) -> None:
    create_token(
        "ada", "--config", config, "--expires", "2030-01-31", "--scope", "chat", "--scope", "metrics"
    )
    create_token(
        "bob", "--config", config, "--expires", "90d", "--max-requests", 3, "--tokens-per-minute", 500
    )
    ada, bob = file.read()
    assert (ada.expires, ada.scopes) == (
        datetime(2030, 1, 31, tzinfo=UTC),
        (AccessScope.CHAT, AccessScope.METRICS),
    )
    assert bob.expires is not None
    assert timedelta(days=89) < bob.expires - datetime.now(UTC) <= timedelta(days=90)
    assert (bob.scopes, bob.max_requests, bob.tokens_per_minute) == (tuple(AccessScope), 3, 500)
    listed = run("list", "--config", config).stdout
    for shown in ("ada", "chat metrics", "2030-01-31 00:00 UTC", "bob", "500", "tokens.json"):
        assert shown in listed


@pytest.mark.parametrize("name", ["Ada's phone", "名前 (2)", "x" * 100, "a@b.example", "-"])
def test_a_name_may_have_any_printable_characters(config: Path, file: AccessTokenFile, name: str) -> None:
    create_token("--config", config, "--", name)
    assert [token.name for token in file.read()] == [name]


FORMER_NAMES = ["alice ", " alice", "a\tb", "a\u00a0b", "a\nb", "a\x1b[2J", "a\u202eb", "[red]", "[/red]"]
"""Names that a new access token may not have, and names that rich would read as markup."""


@pytest.mark.parametrize("name", FORMER_NAMES, ids=ascii)
def test_a_stored_token_may_have_a_name_that_a_new_one_may_not_have(
    config: Path, file: AccessTokenFile, name: str
) -> None:
    file.write([token(name), token("bob")])
    create_token("ada", "--config", config)
    assert [stored.name for stored in file.read()] == [name, "bob", "ada"]
    listed = run("list", "--config", config)
    assert listed.exit_code == 0
    assert all(line.isprintable() for line in listed.stdout.splitlines())
    assert (name if name.startswith("[") else repr(name)) in listed.stdout
    assert run("revoke", name, "--config", config).exit_code == 0
    assert [stored.name for stored in file.read()] == ["bob", "ada"]


@pytest.mark.parametrize("name", FORMER_NAMES, ids=ascii)
async def test_the_log_shows_any_stored_name_in_one_line(
    config: Path, file: AccessTokenFile, engine: FakeEngine, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    file.write([token("secret").model_copy(update={"name": name})])
    caplog.set_level(logging.INFO, "tiller.access")
    async with client_of(
        create_app(load_settings(config, model={"name": "tiny"}), {"tiny": engine})
    ) as client:
        assert await status(client, "secret") == 200
    [record] = [record for record in caplog.records if record.name == "tiller.access"]
    text, line = TextFormatter({}).format(record), JsonFormatter({}).format(record)
    assert text.isprintable()
    assert text.isascii()
    assert line.isprintable()
    assert json.loads(line)["token"] == name


def test_print_only_stores_nothing(config: Path, file: AccessTokenFile) -> None:
    done = run("new", "ada", "--config", config, "--print-only", "--scope", "chat")
    assert "scopes:\n" in done.stdout
    assert not file.path.parent.exists()


def test_tokens_of_the_configuration_are_listed_and_cannot_be_changed(config: Path, tmp_path: Path) -> None:
    tokens = [{"name": "ada", "sha256": "ab" * 32}]
    config.write_text(json.dumps({"data_directory": str(tmp_path / "data"), "auth": {"tokens": tokens}}))
    assert "configuration" in run("list", "--config", config).stdout
    assert_one_line(run("revoke", "ada", "--config", config), "it is in the configuration")
    assert_one_line(run("new", "ada", "--config", config), "an access token named ada already exists")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("new", "a", "--expires", "tomorrow"), "--expires must be a date"),
        (("new", "a", "--max-requests", "0"), "max_requests"),
        (("new", "", "--print-only"), "name must have at least 1 character, got ''"),
        (("new", "x" * 101), "name must have at most 100 characters, got 'xxx"),
        (
            ("new", "a\nb"),
            r"name must have printable characters only, and no space at either end, got 'a\nb'",
        ),
        (("new", "a\x1b[2J"), "name must have printable characters only"),
        (("new", "a\u202e"), "name must have printable characters only"),
        (("new", "ada "), "name must have printable characters only, and no space at either end, got 'ada '"),
        (("new", " ada"), "no space at either end"),
        (("revoke", "nobody"), "there is no such access token"),
    ],
)
def test_a_usage_mistake_is_reported_in_one_line(config: Path, words: tuple[str, ...], message: str) -> None:
    assert_one_line(run(*words, "--config", config), message)


def test_a_second_token_with_the_same_name_is_refused(config: Path) -> None:
    create_token("ada", "--config", config)
    assert_one_line(run("new", "ada", "--config", config), "an access token named ada already exists")


def test_an_unwritable_directory_is_reported_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert_one_line(run("new", "ada", "--config", config), "tokens.json")


def test_a_created_token_allows_a_public_address(config: Path) -> None:
    with pytest.raises(SettingsError, match="tiller token new"):
        load_settings(config, server={"host": "0.0.0.0"})
    create_token("ada", "--config", config)
    assert load_access_tokens(load_settings(config, server={"host": "0.0.0.0"})).required
