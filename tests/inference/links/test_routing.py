"""Each part of a report goes to the gateway that it is for."""

from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    ReadingsResult,
    ReadTexts,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.protocol import EngineStats, StepReport
from inference.interface.requests import (
    Abort,
    Failure,
    FinishReason,
    RefusalCode,
    SubmitResult,
    TokenEvent,
)
from inference.links.routing import Routes
from tests.inference.conftest import request
from tests.inference.steering.conftest import make_training

A, B = b"a", b"b"


def routes(active: set[str]) -> Routes:
    """The routes of two gateways, with one request of each."""
    found = Routes(active.__contains__)
    found.add(A, request("ra", [5], 3))
    found.add(B, request("rb", [5], 3))
    return found


def split(routes: Routes, **fields: object) -> dict[bytes, StepReport]:
    return dict(routes.split(StepReport(**fields), [A, B]))  # type: ignore[arg-type]


def test_each_gateway_gets_the_parts_of_its_own_requests() -> None:
    found = routes({"ra", "rb"})
    found.add(A, ExportVectors("ea", "0a"))
    found.add(B, ReadTexts("xb", "0a", [[1]], [[2]]))
    parts = split(
        found,
        submit_results=[SubmitResult("ra"), SubmitResult("rb")],
        events=[TokenEvent("rb", 0, 7), TokenEvent("ra", 0, 8), TokenEvent("rb", 0, 9)],
        starts={"ra": 0.5},
        vectors=[VectorsResult("ea")],
        readings=[ReadingsResult("xb")],
    )
    assert parts == {
        A: StepReport(
            submit_results=[SubmitResult("ra")],
            events=[TokenEvent("ra", 0, 8)],
            starts={"ra": 0.5},
            vectors=[VectorsResult("ea")],
        ),
        B: StepReport(
            submit_results=[SubmitResult("rb")],
            events=[TokenEvent("rb", 0, 7), TokenEvent("rb", 0, 9)],
            readings=[ReadingsResult("xb")],
        ),
    }


def test_a_gateway_without_a_part_gets_nothing() -> None:
    assert split(routes({"ra", "rb"}), events=[TokenEvent("ra", 0, 7)]).keys() == {A}


def test_all_gateways_get_the_stats() -> None:
    stats = EngineStats(running=3)
    parts = split(routes({"ra"}), stats=stats, events=[TokenEvent("ra", 0, 7)])
    assert [parts[gateway].stats for gateway in (A, B)] == [stats, stats]
    assert parts[A].events == [TokenEvent("ra", 0, 7)]


def test_all_gateways_that_wait_for_a_training_get_its_updates() -> None:
    found = routes(set())
    for gateway in (A, B):
        found.add(gateway, make_training("0a"))
    update = TrainingUpdate("0a", TrainingState.TRAINING, 0.5)
    assert split(found, training=[update]) == {
        A: StepReport(training=[update]),
        B: StepReport(training=[update]),
    }
    ready = TrainingUpdate("0a", TrainingState.READY)
    assert split(found, training=[ready]).keys() == {A, B}
    assert split(found, training=[ready]) == {}, "the training has ended"


def test_a_deleted_concept_has_no_training() -> None:
    found = routes(set())
    found.add(A, make_training("0a"))
    found.add(B, ForgetConcept("0a"))
    assert found.waiting_for("0a") == set()


def test_ended_requests_are_forgotten_once_the_engine_has_ended_all_choices() -> None:
    active = {"ra", "rb"}
    found = routes(active)
    last = TokenEvent("ra", 0, 7, FinishReason.STOP)
    assert split(found, events=[last]).keys() == {A}
    assert found.knows("ra"), "another choice still runs"
    active.clear()
    assert split(found, events=[last]).keys() == {A}
    assert not found.knows("ra")
    assert split(found, events=[last]) == {}
    split(found, failures=[Failure("rb", "it failed")])
    assert not found.knows("rb")


def test_refused_and_aborted_requests_are_forgotten() -> None:
    found = routes(set())
    split(found, submit_results=[SubmitResult("ra", RefusalCode.QUEUE_FULL)])
    found.add(B, Abort("rb"))
    split(found)
    assert not found.knows("ra")
    assert not found.knows("rb")


def test_an_aborted_reading_is_forgotten() -> None:
    found = routes({"x"})
    found.add(A, ReadTexts("x", "0a", [[1]], [[2]]))
    found.add(A, Abort("x"))
    split(found)
    assert not found.knows("x")


def test_the_requests_of_a_gateway_that_leaves_are_aborted() -> None:
    found = routes({"ra", "rb"})
    training: TrainConcept = make_training("0a")
    found.add(A, training)
    found.add(A, ReadTexts("xa", "0a", [[1]], [[2]]))
    assert found.leave(A) == [Abort("ra"), Abort("xa")]
    update = TrainingUpdate("0a", TrainingState.READY)
    assert split(found, events=[TokenEvent("ra", 0, 7)], training=[update]) == {}
    assert split(found, events=[TokenEvent("rb", 0, 7)]).keys() == {B}
