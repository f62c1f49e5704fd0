"""The GPU benchmark: dry runs without a GPU, and what makes its figures valid."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import measuring, oracles, plan, process, speed
from benchmarks.gpu.budget import Deadline, OutOfTimeError
from benchmarks.gpu.engines import Engines, Memory
from benchmarks.gpu.figures import Figure, Limits, MeasurementError, Note
from benchmarks.gpu.limits import Work
from benchmarks.gpu.plan import Options, Part
from benchmarks.gpu.process import Ended, MeasuringProcess
from benchmarks.gpu.results import Results
from benchmarks.gpu.speed import Speed
from inference.engine import Engine
from inference.runner.model_runner import ModelRunner
from tests.benchmarks import gpu_processes, packages
from tests.inference.conftest import build_driver, make_model
from tests.inference.recorder import Recorder

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"
OPTIONS = Options("cpu", "float32", 512, 0.01)
PART = Part("engine", OPTIONS, quick=True, model="tiny")
LIMITS = Limits(1e9, 1e9)
WORK = Work(weight_bytes=1000, kv_bytes_per_token=10, flops_per_token=50)
LATER = Deadline.after(3600)
WORDS = ["--models", "tiny", "--device", "cpu", "--dtype", "float32", "--quick", "--kv-cache-gib", "0.01"]
WAYS = ("no steering", "1 configuration", "4 configurations")


@dataclass(frozen=True)
class Expiring(Deadline):
    """Expires after `num_checks` checks."""

    num_checks: list[int]

    def check(self) -> None:
        self.num_checks[0] -= 1
        if self.num_checks[0] < 0:
            raise OutOfTimeError


def expire_after(checks: int) -> Deadline:
    return Expiring(LATER.at, [checks])


def run_alone(folder: Path, lists: list[str], *words: str) -> tuple[dict[str, Any], str]:
    """Runs the command where only the listed packages are installed. Returns gpu.json and the output."""
    allowed = packages.with_dependencies(packages.read_names(GPU / "requirements-host.txt"))
    for name in lists:
        allowed |= set(map(packages.normalise, packages.read_names(GPU / f"requirements-{name}.txt")))
    python = packages.build_environment(allowed, folder / "environment")
    patient = ["--seconds", "5400"]  # a busy machine may exceed the usual limits
    command = [str(python), "-m", "benchmarks.gpu", *WORDS, *patient, *words, "--output", str(folder / "out")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "out" / "gpu.json").read_text()), done.stdout


def counts(figures: list[dict[str, Any]], name: str) -> dict[str, float]:
    return {figure["what"]: figure["counts"][name] for figure in figures if name in figure["counts"]}


def test_a_dry_run_of_an_engine_with_only_its_packages(tmp_path: Path) -> None:
    content, output = run_alone(tmp_path, ["engine"], "--parts", "engine,attention")
    figures = content["figures"]
    assert all(figure["seconds"] > 0 and figure["meaning"] for figure in figures)
    assert all(figure["what"] in output for figure in figures)
    assert counts(figures, "steering_rows") == {
        f"decode, 4 x 64, {blocks}, {way}": rows
        for blocks in ("1 steered block", "each at 1 of 4 blocks", "4 steered blocks")
        for way, rows in zip(WAYS, (0, 1, 4), strict=True)
    }
    hits = counts(figures, "prefix_cache_hits")
    assert len(hits) == 4
    assert set(hits.values()) == {0}
    sampled = [
        figure["what"].rpartition(", ")[2] for figure in figures if figure["what"].startswith("decode")
    ]
    assert {"top_p 0.9", "top_logprobs 5", "frequency_penalty 0.5"} < set(sampled)
    assert any("Tiller's Triton kernel" in figure["what"] for figure in figures)
    assert [(part["part"], part["fault"], part["memory_kept_gib"]) for part in content["parts"]] == [
        ("engine tiny", None, 0),
        ("attention", None, 0),
    ]
    assert content["device"] == "CPU"
    assert content["versions"]["torch"] == torch.__version__
    assert content["limits"]["bytes_per_second"] > 0
    svg = (tmp_path / "out" / "gpu.svg").read_text()
    assert "<svg" in svg


def test_a_dry_run_of_tests_and_server_with_only_their_packages(tmp_path: Path) -> None:
    tests = "tests/inference/test_engine.py"
    content, _ = run_alone(tmp_path, ["engine", "server"], "--parts", "tests,server", "--tests", tests)
    assert [(test["file"], test["status"]) for test in content["tests"]] == [(tests, "passed")]
    assert [part["fault"] for part in content["parts"]] == [None, None]
    answers = [figure for figure in content["figures"] if figure["what"].startswith("server, 2 streams")]
    assert len(answers) == 2
    assert all(figure["counts"]["failed"] == 0 and figure["tokens_per_second"] > 0 for figure in answers)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"gpu.json", "gpu.svg", "gpu-tests.log", "gpu-server-tiny.log"}


@pytest.fixture
def captured() -> Engine:
    """An engine with captured steps, so that it launches steps ahead."""
    return build_driver(make_model(), capture=Recorder(), num_blocks=400).engine


def measured(engine: Engine) -> Speed:
    return Speed(engine, "tiny", LIMITS, WORK, LATER)


def steering_figures(engine: Engine) -> Iterator[Figure]:
    return measured(engine).steering(4, 20, steps=3, rounds=2, where="two blocks", sets=[(0,), (1,)])


def test_steering_is_measured_also_in_steps_launched_ahead(
    captured: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    launch_after = ModelRunner.launch_after
    monkeypatch.setattr(
        ModelRunner, "launch_after", lambda self, step: launched.append(step) or launch_after(self, step)
    )
    figures = list(steering_figures(captured))
    assert [figure.counts["steering_rows"] for figure in figures] == [0, 1, 4]
    assert len(launched) > 3 * 2 * 3
    assert captured.is_idle


def test_a_batch_with_the_steering_of_before_is_no_measurement(
    captured: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speed, "_rebuild_batch", lambda self: None)
    with pytest.raises(MeasurementError, match="different rows of the bank"):
        list(steering_figures(captured))


def test_a_prompt_in_the_prefix_cache_is_no_measurement(captured: Engine) -> None:
    one = measured(captured)
    assert [figure.counts for figure in one.first_token(40)] == [{"prefix_cache_hits": 0}] * 2
    one._fresh = iter([speed._FRESH_SEED])  # the first prompt again
    with pytest.raises(MeasurementError, match="32 tokens of 1 x 40 were in the prefix cache"):
        one._read(1, 40)


def test_sequences_that_do_not_fit_are_not_measured(captured: Engine) -> None:
    [note] = measured(captured).decode(40, 20, 2)
    assert note == Note("tiny: 40 sequences of 20 tokens do not fit into the KV cache")


def test_each_engine_is_freed_and_its_hooks_are_removed() -> None:
    memory = Memory(torch.device("cpu"))
    engines = Engines("tiny", OPTIONS)
    hooks = []

    def look(engine: Engine) -> Iterator[Figure]:
        hooks.append([len(layer._forward_hooks) for layer in engine.runner.model.layers])
        yield from ()

    for _ in range(2):
        list(engines.measure(look, LATER))
    assert hooks == [[1] * 5] * 2
    kept = []
    with pytest.raises(MeasurementError, match="the engine is still in memory"):
        list(engines.measure(lambda engine: kept.append(engine) or iter(()), LATER))
    kept.clear()
    with pytest.raises(MeasurementError, match="1 engines or models"):
        memory.check()
    del engines
    assert memory.check() == 0


class Connection:
    """The end of a pipe. Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, item: object) -> None:
        self.sent.append(item)


def test_a_part_stops_when_its_time_is_over_and_frees_its_memory() -> None:
    connection, one = Connection(), measuring.Measuring(OPTIONS)
    one._limits = LIMITS
    ended = process._run(one, PART, expire_after(60), connection)
    assert ended == Ended("out of time", {"memory_kept_gib": 0}, reusable=True)
    names = [figure.what for figure in connection.sent]
    assert names[:3] == ["weights", "start of an engine", "first token after 64, first use"]
    assert len(names) < 12


def test_a_part_that_fails_needs_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    one = measuring.Measuring(OPTIONS)
    one._limits = LIMITS
    monkeypatch.setattr(Speed, "decode", lambda self, *_: 1 / 0)
    ended = process._run(one, PART, LATER, Connection())
    assert ended == Ended("ZeroDivisionError: division by zero", {"memory_kept_gib": 0}, reusable=False)


def test_results_are_complete_after_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> dict[str, Any]:
        return json.loads((tmp_path / "gpu.json").read_text())

    results = Results(tmp_path, {"seconds": 1})
    assert read()["figures"] == []
    results.set_environment({"device": "one"})
    results.add(LIMITS)
    assert (read()["device"], read()["limits"]["flops"]) == ("one", 1e9)
    for number in range(1, 4):
        results.add(Figure("m", f"figure {number}", "", 1.0, share_of_limit=0.5, ratio=1.1))
        assert len(read()["figures"]) == number
        assert f"figure {number}" in capsys.readouterr().out
        assert f"m: figure {number}" in (tmp_path / "gpu.svg").read_text()
    results.add(oracles.Outcome("a", "passed", "1 passed", 1.0))
    results.end("first", 1.0, "out of time", stopped=True, details={})
    assert not results.have_failed
    results.end("second", 1.0, "a fault", stopped=False, details={})
    assert [part["fault"] for part in read()["parts"]] == ["out of time", "a fault"]
    assert results.have_failed


def test_without_time_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *WORDS, "--seconds", "0", "--output", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "wheels")
    assert gpu.main() == 0
    assert os.environ["PYTHONPATH"] == f"{ROOT}:{tmp_path / 'wheels'}"  # servers run in other folders
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["figures"] == []
    assert {part["fault"] for part in content["parts"]} == {"not started, out of time"}
    assert [part["part"] for part in content["parts"]] == ["engine tiny", "tests", "attention", "server tiny"]


def test_a_short_run_keeps_the_limits_of_the_first_parts_and_a_long_run_extends_all() -> None:
    first, tests, *_ = plan.entries(plan.PARTS, ["8b", "1b"])
    assert first.deadline(Deadline.after(300), 300).seconds_left == pytest.approx(first.seconds, abs=1)
    assert tests.deadline(Deadline.after(50), 300).seconds_left == pytest.approx(50, abs=1)
    twice = 2 * plan.SECONDS
    assert first.deadline(Deadline.after(twice), twice).seconds_left == pytest.approx(
        2 * first.seconds, abs=1
    )
    with pytest.raises(ValueError, match="no part called speed"):
        plan.entries(["speed"], ["8b"])


def test_a_process_that_fails_dies_or_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_serve", gpu_processes.serve)
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(process, "_STOP_SECONDS", 0.2)
    used, faults = [], []
    with MeasuringProcess(OPTIONS) as measuring_process:
        for kind in ("works", "fails", "dies", "hangs", "works"):
            deadline = Deadline.after(2 if kind == "hangs" else 60)
            figure, ended = measuring_process.run(Part(kind, OPTIONS, quick=True), deadline)
            used.append(figure.what)
            faults.append(ended.fault)
    assert len(set(used)) == 4
    assert used[0] == used[1]
    assert faults == [
        None,
        "a fault of the device",
        "the process has ended",
        "out of time, and it did not stop",
        None,
    ]


def test_outcomes_of_test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "fails": "def test_one(): assert 1 == 2",
        "misses": "import no_such_package",
        "passes": "def test_one(): pass",
        "skips": "import pytest\npytest.importorskip('no_such_package')",
    }
    for name, content in contents.items():
        (tmp_path / f"test_{name}.py").write_text(content)
    monkeypatch.setattr(oracles, "_ROOT", tmp_path)
    log = tmp_path / "gpu-tests.log"
    outcomes = {outcome.file: outcome for outcome in oracles.run(["test_*.py", "none.py"], "cpu", log, LATER)}
    assert {file: outcome.status for file, outcome in outcomes.items()} == {
        "none.py": "failed",
        "test_fails.py": "failed",
        "test_misses.py": "not run",
        "test_passes.py": "passed",
        "test_skips.py": "not run",
    }
    assert outcomes["test_misses.py"].summary == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "assert 1 == 2" in log.read_text()


def test_a_test_file_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_hangs.py").write_text("import time\ndef test_one(): time.sleep(600)")
    monkeypatch.setattr(oracles, "_ROOT", tmp_path)
    monkeypatch.setattr(oracles, "_FILE_SECONDS", 1.0)
    [outcome] = oracles.run(["test_hangs.py"], "cpu", tmp_path / "gpu-tests.log", LATER)
    assert outcome.status == "out of time"
    assert outcome.seconds < 60
    [outcome] = oracles.run(["test_hangs.py"], "cpu", tmp_path / "gpu-tests.log", Deadline.after(0))
    assert (outcome.status, outcome.summary) == ("out of time", "not started")


def test_the_tests_to_run_exist() -> None:
    assert [pattern for pattern in oracles.PATTERNS if not oracles.find(pattern)] == []


def test_limits_of_a_step() -> None:
    limits = Limits(bytes_per_second=100.0, flops=1000.0)
    assert WORK.decode_seconds(limits, sequences=2, context=25) == 15.0
    assert WORK.prefill_seconds(limits, tokens=40) == 2.0
