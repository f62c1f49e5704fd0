"""Downloads from a small server with the hub's API. Each is a process, which reads the hub's variables."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.models.checkpoints import make_model_directory, shard
from tests.inference.models.hub_server import COMMITS, Hub, serve

CODE = """
import json, sys
from pathlib import Path
from inference.interface.config import LogConfig
from inference.interface.errors import SourceError
from inference.interface.logs import set_up_logging
from inference.models import hub
set_up_logging(LogConfig(format="json"))
hub._LOG_SECONDS = 0.02
model, revision, cache = json.loads(sys.argv[1])
try:
    print(hub.download(model, revision, Path(cache)))
except SourceError as error:
    print("refused:", error)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "repository") as hub:
        make_model_directory(hub.root / "main")
        yield hub


class Download:
    """The output of one download."""

    def __init__(
        self, hub: Hub, cache: Path, model: str = "org/model", revision: str | None = None, **env: str
    ) -> None:
        self.hub = hub
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        variables |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cache / "home"),
            "HF_HUB_DISABLE_XET": "1",
            **env,
        }
        result = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps([model, revision, str(cache)])],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.output = result.stdout.strip()
        self.log = [json.loads(line) for line in result.stderr.splitlines()]

    @property
    def directory(self) -> Path:
        assert not self.output.startswith("refused"), self.output
        return Path(self.output)

    @property
    def refusal(self) -> str:
        assert self.output.startswith("refused: ")
        assert "\n" not in self.output
        return self.output.removeprefix("refused: ")


def test_only_the_files_of_one_layout_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    main = hub.root / "main"
    shard(main)
    for name in ("chat_template.jinja", "generation_config.json", "LICENSE", "special_tokens_map.json"):
        (main / name).write_text("{}")
    wanted = {str(path.relative_to(main)) for path in main.rglob("*")}
    for name in (
        "consolidated.safetensors",
        "consolidated.00.pth",
        "model.fp16.safetensors",
        "original/params.json",
        "original/model.safetensors",
        "onnx/config.json",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.Q4.gguf",
        "modeling_model.py",
        "README.md",
    ):
        (main / name).parent.mkdir(exist_ok=True)
        (main / name).write_bytes(b"x")
    directory = Download(hub, tmp_path / "cache").directory
    assert {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} == wanted
    assert set(hub.downloads) <= wanted  # files with the same content are downloaded once


def test_the_second_start_downloads_nothing_and_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    directory = Download(hub, cache).directory
    hub.downloads.clear()
    assert Download(hub, cache).directory == directory
    assert hub.downloads == []
    assert Download(hub, cache, HF_HUB_OFFLINE="1").directory == directory
    hub.status = 503
    assert Download(hub, cache).directory == directory
    hub.url = "http://127.0.0.1:1"
    assert Download(hub, cache).directory == directory


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, tmp_path: Path) -> None:
    make_model_directory(hub.root / "v1", kind="older")
    for revision in ("v1", COMMITS["v1"]):
        directory = Download(hub, tmp_path / revision, revision=revision).directory
        assert directory.name == COMMITS["v1"]
        assert json.loads((directory / "config.json").read_text()) == {"kind": "older"}
    refusal = Download(hub, tmp_path / "v1", revision="v2").refusal
    assert refusal.endswith("org/model has no revision v2 (model.revision)")


def test_a_private_model_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    private = "it does not exist, or it is private and needs a valid HF_TOKEN"
    assert Download(hub, tmp_path / "a").refusal.endswith(private)
    assert Download(hub, tmp_path / "b", HF_TOKEN="hf_wrong").refusal.endswith(private)
    assert Download(hub, tmp_path / "c", HF_TOKEN="hf_secret").directory.is_dir()
    hub.gated = True
    assert "its terms must be accepted there" in Download(hub, tmp_path / "d").refusal


def test_a_missing_model_and_a_broken_hub_are_one_line(hub: Hub, tmp_path: Path) -> None:
    assert "org/other is not a directory and cannot be" in Download(hub, tmp_path, model="org/other").refusal
    hub.status = 500
    assert "Hugging Face hub: " in Download(hub, tmp_path).refusal
    hub.url = "http://127.0.0.1:1"
    unreachable = "Hugging Face hub: http://127.0.0.1:1 cannot be reached: "
    assert unreachable in Download(hub, tmp_path).refusal


def test_offline_needs_a_complete_cache(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    offline = f"HF_HUB_OFFLINE is set, and {cache} does not have all of its files"
    assert Download(hub, cache, HF_HUB_OFFLINE="1").refusal.endswith(offline)
    directory = Download(hub, cache).directory
    (directory / "model.safetensors").unlink()
    refusal = Download(hub, cache, HF_HUB_OFFLINE="1").refusal
    assert "HF_HUB_OFFLINE" in refusal
    assert hub.downloads.count("model.safetensors") == 1


def test_missing_and_truncated_files_in_the_cache_are_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    weights = Download(hub, cache).directory / "model.safetensors"
    complete = weights.read_bytes()
    weights.unlink()
    assert Download(hub, cache).directory == weights.parent
    assert weights.read_bytes() == complete
    weights.resolve().write_bytes(complete[:-1])
    again = Download(hub, cache)
    assert again.directory == weights.parent
    assert weights.read_bytes() == complete
    assert any("is truncated" in line["message"] for line in again.log)


def test_a_download_that_breaks_off_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 50
    directory = Download(hub, tmp_path).directory
    assert (directory / "model.safetensors").read_bytes() == (
        hub.root / "main/model.safetensors"
    ).read_bytes()
    assert hub.downloads.count("model.safetensors") == 2


def test_a_download_that_always_breaks_off_is_refused_and_continued_at_the_next_start(
    hub: Hub, tmp_path: Path
) -> None:
    shard(hub.root / "main")
    hub.cut_after, hub.cuts = 50, 100
    assert "org/model is not a directory and cannot be downloaded from" in Download(hub, tmp_path).refusal
    hub.cuts = 0
    hub.downloads.clear()
    assert Download(hub, tmp_path).directory.is_dir()
    assert sorted(hub.downloads) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_the_progress_is_logged_with_numbers(hub: Hub, tmp_path: Path) -> None:
    first, *_, last = Download(hub, tmp_path).log
    size = (hub.root / "main" / "model.safetensors").stat().st_size
    assert (first["model"], first["total_bytes"]) == ("org/model", size)
    assert last["message"].startswith("downloaded org/model in")


def test_a_repository_without_safetensors_is_explained(hub: Hub, tmp_path: Path) -> None:
    weights = hub.root / "main" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refusal = Download(hub, tmp_path).refusal
    assert (
        "org/model on the Hugging Face hub has its weights in pickled files only (pytorch_model.bin)"
        in refusal
    )
    assert "pytorch_model.bin" not in hub.downloads


def test_quantized_weights_are_not_even_downloaded(hub: Hub, tmp_path: Path) -> None:
    make_model_directory(hub.root / "main", quantization_config={"quant_method": "awq"})
    assert "quantized with awq" in Download(hub, tmp_path).refusal
    assert "model.safetensors" not in hub.downloads
