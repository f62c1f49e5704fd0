"""The link to several gateways, with a socket that plays them."""

from collections import deque
from pathlib import Path

import pytest
import zmq

from inference.interface import protocol, text_files
from inference.interface.concepts import ForgetConcept, TrainingState, TrainingUpdate
from inference.interface.protocol import (
    SILENT_SECONDS,
    EngineStats,
    FetchFile,
    FileContent,
    Hello,
    Leaving,
    Ping,
    Report,
    Started,
    StartFailed,
    StepReport,
)
from inference.interface.requests import Abort, RefusalCode, SubmitResult, TokenEvent
from inference.links.gateways import GatewayLinks
from tests.app.fakes import model_info
from tests.inference.conftest import request
from tests.inference.steering.conftest import make_training

A, B = b"a", b"b"
CONTENT = b"{}"
SHA256 = text_files.sha256_of(CONTENT)
STARTED = Started(model_info(Path(), 300), 100, {"tokenizer.json": SHA256})


class Socket:
    """A ROUTER socket whose gateways the test plays."""

    router_mandatory = False

    def __init__(self) -> None:
        self.arriving: deque[list[bytes]] = deque()
        self.sent: list[tuple[bytes, Report]] = []
        self.gone: set[bytes] = set()

    def poll(self, milliseconds: int) -> bool:
        return bool(self.arriving)

    def recv_multipart(self) -> list[bytes]:
        return self.arriving.popleft()

    def send_multipart(self, frames: list[bytes]) -> None:
        gateway, frame = frames
        if gateway in self.gone:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        self.sent.append((gateway, protocol.decode_report(frame)))


class Worker:
    """A link, its socket and its clock."""

    def __init__(self, directory: Path) -> None:
        file = directory / "tokenizer.json"
        file.write_bytes(CONTENT)
        self.socket = Socket()
        self.now = 100.0
        self.link = GatewayLinks(
            self.socket,  # type: ignore[arg-type]
            Hello("1.0", "m"),
            STARTED,
            {SHA256: file},
            lambda request_id: True,
            lambda: self.now,
        )

    def hear(self, gateway: bytes, *messages: object) -> list[object]:
        """The gateway sends these messages. Returns the commands that the worker's loop gets."""
        for message in messages:
            frame = message if isinstance(message, bytes) else protocol.encode(message)  # type: ignore[arg-type]
            self.socket.arriving.append([gateway, frame])
        return self.take()

    def take(self) -> list[object]:
        commands = []
        while self.link.poll(0):
            commands.append(self.link.receive())
        return commands

    def reports(self) -> list[tuple[bytes, Report]]:
        """What was sent since the last call."""
        sent, self.socket.sent = self.socket.sent, []
        return sent


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """A worker that two gateways have greeted."""
    worker = Worker(tmp_path)
    for gateway in (A, B):
        assert worker.hear(gateway, Hello("1.0", "m")) == []
    assert worker.reports() == [(A, STARTED), (B, STARTED)]
    return worker


def test_commands_arrive_in_order_and_reports_go_to_their_gateways(worker: Worker) -> None:
    assert worker.hear(A, request("ra", [5], 1), Ping()) == [request("ra", [5], 1)]
    assert worker.hear(B, request("rb", [5], 1)) == [request("rb", [5], 1)]
    worker.link.send(StepReport(events=[TokenEvent("ra", 0, 7), TokenEvent("rb", 0, 8)]))
    assert worker.reports() == [
        (A, StepReport(events=[TokenEvent("ra", 0, 7)])),
        (B, StepReport(events=[TokenEvent("rb", 0, 8)])),
    ]


def test_another_version_is_refused(worker: Worker) -> None:
    assert refusal_of(worker, Hello("0.9", "m")) == "the worker has version 1.0, and the gateway 0.9"


def test_a_gateway_of_another_model_is_refused(worker: Worker) -> None:
    assert (
        refusal_of(worker, Hello("1.0", "other")) == "the worker has the model m, and the gateway wants other"
    )
    assert worker.hear(b"c", request("r", [5], 1)) == []


def refusal_of(worker: Worker, hello: Hello) -> str:
    assert worker.hear(b"c", hello) == []
    [(gateway, refusal)] = worker.reports()
    assert gateway == b"c"
    assert isinstance(refusal, StartFailed)
    return refusal.message


def test_a_request_id_of_another_gateway_is_refused(worker: Worker) -> None:
    worker.hear(A, request("r", [5], 1))
    assert worker.hear(B, request("r", [6], 1)) == []
    refused = SubmitResult("r", RefusalCode.INTERNAL, "request_id is already in use")
    assert worker.reports() == [(B, StepReport(submit_results=[refused]))]


def test_a_gateway_that_sends_nothing_is_dropped_and_must_greet_again(worker: Worker) -> None:
    worker.hear(A, request("ra", [5], 9))
    worker.hear(B, request("rb", [5], 9))
    worker.now += SILENT_SECONDS - 1
    assert worker.hear(B, Ping()) == []
    worker.now += 2
    assert worker.take() == [Abort("ra")]
    [(gateway, refusal)] = worker.reports()
    assert (gateway, type(refusal)) == (A, StartFailed)
    assert worker.hear(A, request("again", [5], 9)) == []
    assert [type(report) for _, report in worker.reports()] == [StartFailed]
    worker.hear(A, Hello("1.0", "m"))
    assert worker.reports() == [(A, STARTED)]
    assert worker.hear(A, request("again", [5], 9)) == [request("again", [5], 9)]


def test_a_gateway_is_not_silent_while_the_worker_does_not_listen(worker: Worker) -> None:
    """A step may take long. What has arrived meanwhile counts."""
    worker.now += 5 * SILENT_SECONDS
    assert worker.hear(A, Ping(), request("ra", [5], 9)) == [request("ra", [5], 9)]
    worker.link.send(StepReport(stats=EngineStats(running=1)))
    assert (A, StepReport(stats=EngineStats(running=1))) in worker.reports()


def test_a_closed_connection_ends_the_requests_at_the_next_report(worker: Worker) -> None:
    worker.hear(A, request("ra", [5], 9))
    worker.hear(B, request("rb", [5], 9))
    worker.socket.gone.add(A)
    worker.link.send(StepReport(events=[TokenEvent("ra", 0, 7), TokenEvent("rb", 0, 8)]))
    assert worker.reports() == [(B, StepReport(events=[TokenEvent("rb", 0, 8)]))]
    assert worker.take() == [Abort("ra")]


@pytest.mark.parametrize("frame", [b"", b"\x00", b"\xc1", protocol.encode(StepReport())])
def test_a_message_that_cannot_be_read_costs_only_its_gateway(worker: Worker, frame: bytes) -> None:
    worker.hear(A, request("ra", [5], 9))
    assert worker.hear(A, frame) == [Abort("ra")]
    assert [(gateway, type(report)) for gateway, report in worker.reports()] == [(A, StartFailed)]
    assert worker.hear(B, request("rb", [5], 9)) == [request("rb", [5], 9)]


def test_only_files_of_the_model_are_sent(worker: Worker) -> None:
    assert worker.hear(A, FetchFile(SHA256)) == []
    assert worker.reports() == [(A, FileContent(SHA256, CONTENT))]
    worker.hear(A, FetchFile("../../etc/passwd"))
    assert [type(report) for _, report in worker.reports()] == [StartFailed]


def test_a_deletion_ends_the_waiting_of_the_others(worker: Worker) -> None:
    for gateway in (A, B):
        worker.hear(gateway, make_training("0a"))
    assert worker.hear(A, ForgetConcept("0a")) == [ForgetConcept("0a")]
    update = TrainingUpdate("0a", TrainingState.FAILED, detail="it was deleted")
    assert worker.reports() == [(B, StepReport(training=[update]))]


def test_all_are_told_that_the_worker_leaves(worker: Worker) -> None:
    worker.link.leave()
    assert worker.reports() == [(A, Leaving()), (B, Leaving())]
