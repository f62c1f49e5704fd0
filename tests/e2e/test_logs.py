"""The JSON logs that a server and its worker write to stderr, each in its own process."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.conftest import MODEL, START_SECONDS, TOKEN, TOKEN_SHA256
from tests.e2e.faulty_worker import KILL, RAISE

WORD = "Quetzalcoatl"


def ask(url: str, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": f"Say {WORD} twice"}]
    fields = {"model": MODEL, "messages": messages, "temperature": 0, "logit_bias": {"1": -100}, **fields}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.post(f"{url}/chat/completions", json=fields, headers=headers, timeout=60)


def send_no_http(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(f"{WORD} {TOKEN}\r\n\r\n".encode())
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def test_every_line_of_both_is_json_without_prompts_and_access_tokens(
    tiny_config: dict, tmp_path: Path
) -> None:
    auth = {"tokens": [{"name": "ada", "sha256": TOKEN_SHA256}]}
    more = {"auth": auth, "log": {"format": "json", "level": "debug"}, "data_directory": str(tmp_path)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**tiny_config, **more, "steering": {"train_at_start": False}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.faulty_server", "serve", "--config", str(file), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[dict[str, Any]] = []
    try:
        while not lines or "url" not in lines[-1]:
            lines.append(json.loads(process.stderr.readline()))
        url = lines[-1]["url"]
        assert ask(url, max_tokens=5).status_code == 200
        measured = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert ask(url, temperature=9).status_code == 400
        send_no_http(url)
        failed = ask(url, max_tokens=RAISE)
        assert failed.status_code == 500
        assert ask(url, max_tokens=KILL).status_code in (200, 503)
    finally:
        watchdog.cancel()
        process.terminate()
        stdout, stderr = process.communicate(timeout=30)
    lines += map(json.loads, stderr.splitlines())
    for counted in ("inter_token_latency_seconds_count{}4.0", "queue_time_seconds_count{}1.0"):
        assert re.search("^tiller_" + counted.replace("{}", r"\{.*\} ") + "$", measured, re.MULTILINE)
    first = next(line for line in lines if line["logger"] == "tiller.access")
    assert 0 <= first["queue_seconds"] <= first["first_token_seconds"] <= first["seconds"]
    assert stdout == ""
    assert {line.get("worker") for line in lines} == {None, 0}
    of_failed = [line for line in lines if line.get("request_id") == failed.headers["x-request-id"]]
    assert [(line["logger"], line["level"]) for line in of_failed] == [
        ("tiller.worker", "error"),
        ("app.http.errors", "error"),
        ("tiller.access", "info"),
    ]
    assert "a bug in an operation" in of_failed[0]["exception"]
    answered = [line["status"] for line in lines if line["logger"] == "tiller.access"]
    assert answered[:5] == [200, 200, 400, 400, 500], "the level debug also logs /metrics"
    assert any("has ended with status -9" in line["message"] for line in lines)
    for secret in (WORD, TOKEN, TOKEN_SHA256):
        assert secret not in json.dumps(lines)
