"""Settings come from the file, the environment and the command line. Each error in them is one line."""

import json
import os
from pathlib import Path

import pytest

from app.configuration import SettingsError, load_settings
from app.errors import StartError
from app.settings import AccessToken, AuthSettings, EngineSettings, Settings
from inference.interface.config import EngineConfig
from tests.inference.models.checkpoints import make_model_directory

ROOT = Path(__file__).parents[2]
TOKEN = {"name": "ada", "sha256": "ab" * 32}


def two_tokens(**same: str) -> str:
    return json.dumps({"auth": {"tokens": [TOKEN, {"name": "bob", "sha256": "cd" * 32, **same}]}})


@pytest.fixture(autouse=True)
def _no_tiller_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TILLER_"):
            monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    file = directory / "tiller.yaml"
    file.write_text(text)
    return file


def test_the_defaults_equal_those_of_the_worker() -> None:
    config = EngineConfig()
    assert Settings().engine_config(Settings().served_models[0]) == config
    not_settings = {"source", "revision", "rotary", "cache_directory", "replica", "log"}
    not_settings |= {"device_index", "device_processes", "training_questions", "refine_directions"}
    assert set(EngineSettings.model_fields) == {*config.__struct_fields__} - not_settings


def test_trainings_are_settings_of_steering(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "steering: {questions: 3, refine: true}"))
    config = settings.engine_config(settings.served_models[0])
    assert (config.training_questions, config.refine_directions) == (3, True)


def test_the_command_line_beats_the_environment_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "server: {port: 1, host: 127.0.0.3, max_body_bytes: 3}")
    monkeypatch.setenv("TILLER_SERVER__PORT", "2")
    monkeypatch.setenv("TILLER_SERVER__HOST", "127.0.0.2")
    server = load_settings(file, server={"port": 3}).server
    assert (server.port, server.host, server.max_body_bytes) == (3, "127.0.0.2", 3)


def test_the_former_name_of_integer_quantization_is_read(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "engine: {quantization: int8}"))
    assert settings.engine.quantization == "integer"


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\n", "server: {}\n"])
def test_an_empty_file_or_section_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load_settings(write(tmp_path, text)).model_dump() == Settings().model_dump()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {}", "sever is not a setting"),
        ("server: {prt: 1}", "server.prt is not a setting"),
        ("server: {port: many}", "server.port must be a valid integer"),
        ("server: {port: 70000}", "server.port must be less than or equal to 65535, got 70000"),
        ("server: 5", "server must be a mapping, got 5"),
        ("engine: {dtype: int8}", "engine.dtype must be 'auto', 'float32'"),
        ("engine: {kv_cache_gib: .nan}", "engine.kv_cache_gib must be"),
        ("engine: {kv_cache_share: 1}", "engine.kv_cache_share must be less than 1, got 1"),
        (
            "engine: {kv_cache_gib: 2, kv_cache_share: 0.4}",
            "kv_cache_share must not be set beside kv_cache_",
        ),
        ("auth: {tokens: [{name: a, sha256: secret}]}", "auth.tokens.0.sha256 must match"),
        ("- 1", "must be a mapping of sections"),
        ("1: 2", "must be a mapping of sections"),
        ("a: [", "is not valid YAML"),
        ("server: {port: 1}\nserver: {port: 2}", "is not valid YAML: duplicate key server in"),
        ("server:\n\tport: 1", "cannot start any token in line 2"),
        ("server: {port: -1}", "server.port must be greater than or equal to 0, got -1"),
        ("server: {tls: {certificate: a.pem}}", "server.tls.key is required"),
        ("server: {cors_origins: [example.org]}", "server.cors_origins.0 must be '*' or an origin such as"),
        ("server: {cors_origins: 'https://example.org'}", "server.cors_origins must be a list, got 'https:"),
        ("model: {name: ''}", "model.name must have at least 1 character, got ''"),
        ("engine: {replicas: 0}", "engine.replicas must be greater than or equal to 1, got 0"),
        ("engine: {threads: 1.5}", "engine.threads must be a valid integer"),
        ("engine: {kv_cache_gib: 0}", "engine.kv_cache_gib must be greater than 0, got 0"),
        ("engine: {context_length: -5}", "engine.context_length must be greater than or equal to 1, got -5"),
        ("engine: {device: tpu}", "engine.device must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (
            "engine: {steering_blocks: [3, 3]}",
            "engine.steering_blocks must name each decoder block once, got [3, 3]",
        ),
        ("engine: {steering_blocks: []}", "engine.steering_blocks must have at least 1 item"),
        ("limits: {max_wait_seconds: 0}", "limits.max_wait_seconds must be greater than 0, got 0"),
        ("server: {stream_open_seconds: 0}", "server.stream_open_seconds must be greater than 0, got 0"),
        ("server: {ping_seconds: 0}", "server.ping_seconds must be greater than or equal to 1, got 0"),
        ("limits: {default_max_tokens: 0}", "limits.default_max_tokens must be greater than or equal to 1"),
        ("api: {strict: perhaps}", "api.strict must be a valid boolean"),
        ("api: {lenient: true}", "api.lenient is not a setting"),
        ("log: {format: xml}", "log.format must be 'text' or 'json', got 'xml'"),
        ("log: {level: loud}", "log.level must be 'debug', 'info', 'warning' or 'error', got 'loud'"),
        ("auth: {tokens: [{name: a}]}", "auth.tokens.0.sha256 is required"),
        (two_tokens(name="a\tb"), r"auth.tokens.1.name must have printable characters only"),
        (two_tokens(name="b "), "auth.tokens.1.name must have printable characters only, and no space at"),
        (two_tokens(name="ada"), "auth.tokens must not have the same name twice"),
        (two_tokens(sha256=TOKEN["sha256"]), "auth.tokens must not have the same sha256 twice"),
    ],
)
def test_an_error_in_the_file_names_the_file_the_key_and_the_rule(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load_settings(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_each_mistake_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILLER_SERVER__PORT", "many")
    file = write(tmp_path, "engine: {threads: 0}\nmodl: {}")
    with pytest.raises(SettingsError) as error:
        load_settings(file)
    lines = sorted(str(error.value).splitlines())
    assert lines[0].startswith(f"{file}: engine.threads must be")
    assert lines[1].startswith(f"{file}: modl is not a setting")
    assert lines[2].startswith("environment: TILLER_SERVER__PORT: server.port must be")
    assert len(lines) == 3


def test_a_file_may_use_anchors_and_merge_keys(tmp_path: Path) -> None:
    tokens = (
        f"[&one {{name: a, sha256: {'a' * 64}, max_requests: 3}}, {{<<: *one, name: b, sha256: {'b' * 64}}}]"
    )
    first, second = load_settings(write(tmp_path, f"auth: {{tokens: {tokens}}}")).auth.tokens
    assert (first.name, second.name, second.sha256, second.max_requests) == ("a", "b", "b" * 64, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["TILLER_HOST", "TILLER_SERVER__PRT", "TILLER_SERVR__PORT"])
def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match="is not a setting"):
        load_settings(None)


def test_variables_that_kubernetes_sets_for_a_service_named_tiller_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TILLER_PORT", "TILLER_SERVICE_HOST", "TILLER_PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    assert load_settings(None).server.port == 8000


def test_a_variable_with_invalid_json_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILLER_AUTH__TOKENS", "[{")
    with pytest.raises(SettingsError, match=r"^environment: TILLER_AUTH__TOKENS is not valid JSON$"):
        load_settings(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TILLER_SERVER__PORT", "many"), ("tiller_server__port", "-1"), ("TILLER_SERVER", '{"port": "x"}')],
)
def test_an_error_in_a_variable_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^environment: {name}: server\.port must be"):
        load_settings(write(tmp_path, "server: {port: 1}"))


def test_an_error_on_the_command_line_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--port: server\.port must be less than or equal to 65535"):
        load_settings(write(tmp_path, "server: {port: 1}"), server={"port": 99999})


def test_a_missing_or_incomplete_model_is_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    def refusal(source: Path | str, kind: type[Exception] = StartError, **model: str) -> str:
        with pytest.raises(kind, match=r"^model\.(source: |revision )") as error:
            load_settings(None, model={"source": str(source), **model})
        return str(error.value)

    assert "does not exist" in refusal(tmp_path / "none", SettingsError)
    assert "does not exist" in refusal("~nobody-of-this-name/model", SettingsError)
    directory = make_model_directory(tmp_path / "model")
    assert load_settings(None, model={"source": str(directory)}).model.source == str(directory)
    (directory / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(directory)
    (directory / "model.safetensors").unlink()
    assert "has no weights" in refusal(directory)
    assert "is neither a directory nor a GGUF file" in refusal(directory / "config.json")
    assert refusal("embedded", SettingsError, revision="v1") == (
        "model.revision is only for models from the hub, and model.source is embedded"
    )
    settings = load_settings(None, model={"source": "org/model", "revision": "v1"})
    assert settings.engine_config(settings.served_models[0]).revision == "v1"


def test_the_chat_template_must_be_a_file(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "none.jinja"), "~nobody-of-this-name/x"):
        with pytest.raises(SettingsError, match=f"^model.chat_template: the file {name} does not exist$"):
            load_settings(None, model={"chat_template": name})
    (tmp_path / "chat.jinja").touch()
    settings = load_settings(None, model={"chat_template": str(tmp_path / "chat.jinja")})
    assert settings.model.chat_template_file == tmp_path / "chat.jinja"
    assert Settings().model.chat_template_file is None


@pytest.mark.parametrize("key", ["cache_directory", "data_directory"])
def test_a_file_instead_of_a_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/deeper/still"):
        with pytest.raises(
            SettingsError, match=rf"^{key} {tmp_path}/{name} is not a directory: \S+file is a file"
        ):
            load_settings(write(tmp_path, f"{key}: {tmp_path / name}"))
    with pytest.raises(SettingsError, match=rf"^{key} ~nobody-of-this-name/x cannot be found"):
        load_settings(write(tmp_path, f"{key}: ~nobody-of-this-name/x"))
    assert load_settings(write(tmp_path, f"{key}: {tmp_path / 'new' / 'one'}"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SettingsError, match=rf"^{key} {tmp_path}/new cannot be read"):
        load_settings(write(tmp_path, f"{key}: {tmp_path / 'new'}"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_addresses_than_loopback_need_access_tokens(host: str) -> None:
    with pytest.raises(SettingsError, match="tiller token new"):
        load_settings(None, server={"host": host})
    assert load_settings(None, server={"host": host}, auth={"tokens": [TOKEN]}).server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_need_no_access_tokens(host: str) -> None:
    assert load_settings(None, server={"host": host}).auth == AuthSettings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        AccessToken(**TOKEN).name = "eve"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["quickstart.yaml", "gpu.yaml", "cluster.yaml"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    assert load_settings(ROOT / "configs" / name).served_models


def test_a_server_with_a_registry_needs_no_files_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {source: /nowhere}")
    with pytest.raises(SettingsError, match="/nowhere"):
        load_settings(file)
    file.write_text("{model: {source: /nowhere}, registry: 'ipc:///run/registry'}")
    assert load_settings(file).model.source == "/nowhere"


def test_the_directory_of_shipped_concepts_must_exist_only_if_it_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not load_settings(None).shipped_concepts.exists()
    with pytest.raises(SettingsError, match=r"steering\.concepts configs/concepts is not a directory"):
        load_settings(None, steering={"concepts": "configs/concepts"})
    monkeypatch.setenv("TILLER_STEERING__CONCEPTS", str(tmp_path))
    assert load_settings(None).shipped_concepts == tmp_path


def test_created_concepts_are_stored_in_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_settings(None).created_concepts == Path("/home/ada/.local/share/tiller/concepts")
    monkeypatch.setenv("TILLER_DATA_DIRECTORY", "/var/lib/tiller")
    assert load_settings(None).created_concepts == Path("/var/lib/tiller/concepts")


def test_the_variables_of_the_clients_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILLER_TOKEN", "secret")
    monkeypatch.setenv("TILLER_URL", "http://127.0.0.1:9000")
    assert "secret" not in repr(load_settings(None))


SEVERAL = """
engine: {device: cpu, kv_cache_gib: 1}
models:
  - {name: a, source: embedded, description: The first.}
  - {name: b, source: embedded, engine: {device: cuda, kv_cache_share: 0.3, replicas: 2}}
  - {name: c, source: embedded, engine: {device: auto}}
"""


def test_each_of_several_models_has_the_common_engine_but_for_what_it_sets_itself(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, SEVERAL))
    a, b, c = settings.served_models
    assert [model.name for model in settings.served_models] == ["a", "b", "c"]
    assert (a.engine.device, a.engine.kv_cache_gib, a.engine.kv_cache_share) == ("cpu", 1, None)
    assert (b.engine.device, b.engine.kv_cache_gib, b.engine.kv_cache_share) == ("cuda", None, 0.3)
    configs = [settings.engine_config(model) for model in (a, b, c)]
    assert [config.device_processes for config in configs] == [3, 3, 3], "not those on the CPU"
    assert [config.device_index for config in configs[1:]] == [0, 2]
    assert [config.log.model for config in configs] == ["a", "b", "c"]


def test_the_short_form_is_one_model_with_the_common_engine(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "model: {name: x, description: One.}\nengine: {dtype: float16}"))
    [model] = settings.served_models
    assert (model.name, model.source, model.description) == ("x", "embedded", "One.")
    assert model.engine.dtype == "float16"
    assert settings.engine_config(model).log.model == ""


@pytest.mark.parametrize(
    ("models", "rule"),
    [
        ("[{name: a, source: embedded}, {name: a, source: x}]", "models must not have the same name twice"),
        ("[{name: a}]", "models.0.source is required"),
        ("[{source: embedded}]", "models.0.name is required"),
        ("[3]", "models.0 must be a mapping, got 3"),
        ("{name: a}", "models must be a list, got "),
        ("[{name: a, source: embedded, engine: 3}]", "models.0.engine must be a mapping, got 3"),
        ("[{name: a, source: embedded, engine: {device: tpu}}]", "models.0.engine.device must be "),
        ("[{name: a, source: embedded, size: 3}]", "models.0.size is not a setting"),
        ("[{name: a, source: /no/such/model}]", "models.0.source: "),
        ("[{name: a, source: embedded, revision: v1}]", "models.0.revision is only for models from the hub"),
        ("[{name: a, source: embedded, chat_template: /none}]", "models.0.chat_template: the file /none"),
        (
            "[{name: a, source: embedded}]\nmodel: {name: x}",
            "models must not be set beside the section model",
        ),
    ],
)
def test_a_mistake_in_several_models_is_one_clear_line(tmp_path: Path, models: str, rule: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(write(tmp_path, f"models: {models}"))
    assert rule in str(error.value)
    assert "\n" not in str(error.value)


def test_several_models_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILLER_MODELS", '[{"name": "a", "source": "embedded"}]')
    assert [model.name for model in load_settings(None).served_models] == ["a"]
