"""The command line: errors are one line, access tokens are created, and concepts are created from files."""

import asyncio
import gc
import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors.numpy import load_file
from typer.testing import CliRunner

from app.cli import build_commands
from app.concepts.neutral_texts import NEUTRAL_QUESTIONS
from app.settings import AuthSettings, Settings
from inference.interface.concepts import TrainingState, TrainingUpdate
from tests.app.command_line import assert_one_line
from tests.app.concepts.vectors.files import vector, write_gguf
from tests.app.contract.support import until
from tests.app.fakes import HANG, REPORT, FakeEngine, pausing, train_badly
from tests.given_vectors import added_by

ROOT = Path(__file__).parents[2]


def tiller(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_command_imports_no_server() -> None:
    """`tiller health` runs every few seconds in a container, and `tiller serve` handles Ctrl-C first."""
    heavy = ("fastapi", "numpy", "torch", "transformers", "ray")
    script = f"import sys, app.cli; app.cli.build_commands(); print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_new_access_token_is_printed_with_its_configuration() -> None:
    lines = tiller("token", "new", "--print-only", 'Ada "x": y').stdout.splitlines()
    token = lines[0].removeprefix("Token: ")
    auth = AuthSettings.model_validate(yaml.safe_load("\n".join(lines[3:]))["auth"])
    assert [(entry.name, entry.sha256) for entry in auth.tokens] == [
        ('Ada "x": y', hashlib.sha256(token.encode()).hexdigest())
    ]


def test_a_mistake_in_the_settings_is_one_line() -> None:
    done = tiller("serve", TILLER_SERVER__PORT="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tiller: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tiller("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_invalid_access_token_file_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("[")
    done = tiller("serve", "--port", "0", TILLER_DATA_DIRECTORY=str(tmp_path))
    assert done.returncode == 1
    assert "tokens.json: Invalid JSON: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_certificate_without_its_key_is_one_line(tmp_path: Path) -> None:
    tls = {"certificate": str(tmp_path / "a.pem"), "key": str(tmp_path / "b.pem")}
    done = tiller("serve", "--port", "0", TILLER_SERVER__TLS=json.dumps(tls))
    assert done.returncode == 1
    assert "server.tls.certificate: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


TOKEN = "a token for tests"
CONCEPT = {"name": "kind", "description": "Kind", "examples": [{"positive": "Thanks!", "negative": "So?"}]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The server's settings, with an access token, and a concept file that is not valid."""
    settings.created_concepts.mkdir(parents=True)
    (settings.created_concepts / "broken.json").write_text("{")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    auth = AuthSettings.model_validate({"tokens": [{"name": "ada", "sha256": digest}]})
    return settings.model_copy(update={"auth": auth})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "kind.yaml"
    file.write_text(yaml.safe_dump(CONCEPT))
    return file


async def concept(*arguments: object, url: str, token: str | None = TOKEN) -> Result:
    """Runs `tiller concept …` on another thread, because the server runs in this one."""
    words = ["concept", *map(str, arguments), "--url", url]
    runner = CliRunner(env={"TILLER_TOKEN": token, "COLUMNS": "100"})
    return await asyncio.to_thread(runner.invoke, build_commands(), words)


@pytest.mark.parametrize("prefix", ["", "/", "/v1"])
async def test_a_concept_is_created_from_a_file(live_url: str, file: Path, prefix: str) -> None:
    done = await concept("train", file, url=live_url + prefix)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("_worker/kind: ready, examples: 1\n")
    for shown in (
        *("-1 ", "-0.500 ± 0.125", "1.12", "+1 ", "+0.500", "50%", "6%", "8.0"),
        *("2 of 2 distinct", "in 2 groups", "2 measured", "agreement 0.12"),
        *("Specificity: 4.0 ± 0.5", "rank correlation 1.00"),
        *("Steered blocks: 16, 17; read at block 16", "0.150 at 1, 0.100 at -1", "from -1.25 to 1.75"),
        *("Works: the held-out", "Warning: The pairs'"),
        f"\n{NEUTRAL_QUESTIONS[1]}\n-1: ",
    ):
        assert shown in done.stdout


async def test_a_report_without_measurements_is_printed(
    live_url: str, file: Path, engine: FakeEngine
) -> None:
    nothing = dict.fromkeys(("works", "agreement", "spearman", "specificity", "specificity_error"))
    empty = {"effects": [], "answers": [], "samples": [], "warnings": [], "summary": "Not measured."}
    report = msgspec.structs.replace(REPORT, **nothing, **empty)
    engine.training = lambda command: [TrainingUpdate(command.concept, TrainingState.READY, 1.0, report)]
    done = await concept("train", file, url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Specificity: -, rank correlation -" in done.stdout
    assert "Not measured." in done.stdout
    assert "strength " not in done.stdout


async def test_vectors_are_exported_and_imported(
    live_url: str, file: Path, tmp_path: Path, engine: FakeEngine
) -> None:
    await concept("train", file, url=live_url)
    vectors = tmp_path / "kind.safetensors"
    done = await concept("export", "kind", vectors, url=live_url)
    assert (done.exit_code, done.output) == (0, "")
    assert set(load_file(vectors)) == {"direction.1", "direction.2"}
    done = await concept("import", vectors, "--name", "copy", url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("_worker/copy: ready, examples: 0, imported vectors\n")
    listed = await concept("list", url=live_url)
    assert "0, imported" in listed.stdout
    assert_one_line(await concept("import", vectors, url=live_url), "_worker/kind already exists")
    assert (await concept("delete", "kind", url=live_url)).exit_code == 0
    done = await concept("import", vectors, "--description", "Mine", url=live_url)
    assert done.stdout.startswith("_worker/kind: ready")
    assert "Mine" in (await concept("list", url=live_url)).stdout


async def test_a_control_vector_is_imported_with_examples_to_measure_it(
    live_url: str, file: Path, tmp_path: Path, engine: FakeEngine
) -> None:
    control = tmp_path / "control.gguf"
    control.write_bytes(write_gguf({2: vector().astype(np.float16)}))
    done = await concept("import", control, "--name", "x", "--examples", file, url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("_worker/x: ready, examples: 1, imported vectors\n")
    [command] = engine.trainings
    assert len(command.positive) == 1
    assert command.vectors is not None
    assert (command.vectors.blocks, command.vectors.values) == ((2,), vector().tobytes())


async def test_an_export_keeps_its_scale_when_it_is_imported_with_examples(
    live_url: str, file: Path, tmp_path: Path, engine: FakeEngine
) -> None:
    await concept("train", file, url=live_url)
    vectors = tmp_path / "kind.safetensors"
    await concept("export", "kind", vectors, url=live_url)
    done = await concept("import", vectors, "--name", "x", "--examples", file, url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    given = engine.trainings[-1].vectors
    assert given is not None
    assert added_by(given)[0] == pytest.approx([0, 3, 4, 0, 0, 0, 0, 0])
    assert given.down_scale == 0.5


async def test_files_that_cannot_be_imported_are_one_line(live_url: str, file: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "x.pt"
    pickled.write_bytes(pickle.dumps([1.0]))
    for extra in ((), ("--examples", file)):
        done = await concept("import", pickled, "--name", "x", *extra, url=live_url)
        assert_one_line(done, "is a pickle", "convert it first")
    assert_one_line(await concept("import", tmp_path / "none", url=live_url), "No such file")
    control = tmp_path / "control.gguf"
    control.write_bytes(write_gguf({2: vector()}))
    assert_one_line(await concept("import", control, url=live_url), "name is required")
    done = await concept("import", control, "--name", "x", "--examples", pickled, url=live_url)
    assert_one_line(done, "x.pt")
    (tmp_path / "bad.yaml").write_text("examples: [{positive: a}]")
    done = await concept("import", control, "--name", "x", "--examples", tmp_path / "bad.yaml", url=live_url)
    assert_one_line(done, "examples[0].negative is required")


async def test_an_export_that_fails_leaves_no_file(live_url: str, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    assert_one_line(
        await concept("export", "nobody", target, url=live_url),
        "_worker/nobody is unknown; `tiller concept list` lists all",
    )
    await concept("train", file, url=live_url)
    missing = tmp_path / "none" / "x.safetensors"
    assert_one_line(await concept("export", "kind", missing, url=live_url), "No such file")
    assert not target.exists()


async def test_a_file_may_be_json_without_a_name(live_url: str, tmp_path: Path) -> None:
    file = tmp_path / "concept.json"
    file.write_text(json.dumps({"examples": CONCEPT["examples"]}))
    assert (await concept("train", file, url=live_url)).exit_code == 0


async def test_concepts_are_listed_shown_and_deleted(live_url: str, file: Path) -> None:
    made = await concept("train", file, url=live_url)
    listed = await concept("list", url=live_url)
    assert listed.exit_code == 0
    for shown in ("_worker/kind", "ready", "Kind"):
        assert shown in listed.stdout
    for name in ("kind", "_worker/kind"):
        assert (await concept("show", name, url=live_url)).stdout == made.stdout
    deleted = await concept("delete", "kind", url=live_url)
    assert (deleted.exit_code, deleted.output) == (0, "")
    assert_one_line(await concept("show", "kind", url=live_url), "_worker/kind is unknown")


async def test_concept_files_that_cannot_be_used_are_listed(live_url: str) -> None:
    listed = await concept("list", url=live_url)
    assert (listed.exit_code, len(listed.stderr.splitlines())) == (0, 1)
    assert "broken.json" in listed.stderr


async def test_a_concept_in_creation_is_listed_and_can_be_deleted(
    live_url: str, file: Path, engine: FakeEngine
) -> None:
    engine.training = pausing(HANG, state=TrainingState.MEASURING)
    making = asyncio.create_task(concept("train", file, url=live_url))
    await until(lambda: engine.in_training)
    await asyncio.sleep(0.05)
    assert "measuring 50%" in (await concept("list", url=live_url)).stdout
    assert_one_line(
        await concept("delete", "nobody", url=live_url),
        "_worker/nobody is unknown; `tiller concept list` lists all",
    )
    assert (await concept("delete", "kind", url=live_url)).exit_code == 0
    assert_one_line(await making, "deleted while it was being created")


async def test_a_concept_that_fails_is_one_line(live_url: str, file: Path, engine: FakeEngine) -> None:
    engine.training = train_badly
    assert_one_line(await concept("train", file, url=live_url), "differ in nothing")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "must have examples"),
        ("name: kind", "must have examples"),
        ("exmaples: []", "must have examples"),
        ("examples: [", "not valid YAML or JSON"),
        ("examples: [2020-01-01]", "not valid YAML or JSON"),
        ("examples: [.nan]", "not valid YAML or JSON"),
        ('examples: ["\\ud800"]', "not valid YAML or JSON"),
        ("examples: []", "1 to 1000 items"),
        ("examples: [{positive: a}]", "examples[0].negative is required"),
        ("examples: [{positive: a, negative: b}]\nname: ../x", "name must match"),
    ],
)
async def test_a_file_without_a_valid_concept_is_one_line(
    live_url: str, tmp_path: Path, text: str, word: str
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert_one_line(await concept("train", tmp_path / "x.yaml", url=live_url), word)


async def test_a_missing_file_is_one_line(live_url: str, tmp_path: Path) -> None:
    assert_one_line(await concept("train", tmp_path / "none", url=live_url), "No such file")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "http://[", "ftp://127.0.0.1"])
async def test_an_unreachable_server_is_one_line(
    file: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert_one_line(await concept("train", file, url=url), "cannot be reached")
    gc.collect()  # asyncio reports a task whose error nobody has read when the task is freed
    assert not caplog.records


async def test_another_server_is_one_line(file: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert_one_line(await concept("list", url=url), "502")


async def test_the_access_token_comes_from_the_environment_or_an_option(live_url: str) -> None:
    for token in (None, "wrong"):
        assert_one_line(await concept("list", url=live_url, token=token), "token")
        assert (await concept("list", "--token", TOKEN, url=live_url, token=token)).exit_code == 0


async def test_ctrl_c_ends_the_command_but_not_the_creation(
    live_url: str, file: Path, engine: FakeEngine
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    words = ("concept", "train", str(file), "--url", live_url, "--token", TOKEN)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", *words, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    await until(lambda: engine.in_training, seconds=20)
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, stderr) == (130, b"")
    go_on.set()
    assert (await concept("train", file, url=live_url)).exit_code == 0
    assert len(engine.trainings) == 1
