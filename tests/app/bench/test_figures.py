"""Records, figures, tables and prompts of the load test, without any requests."""

import json

import pytest

from app.bench.figures import Figures, Measurement, Point, percentile, summarize
from app.bench.prompts import MIN_WORDS, Prompts
from app.bench.records import Record, read_stream
from app.bench.report import by_point, problems, table, to_json


def chunk(content: str | None = None, **fields: object) -> dict:
    delta = {} if content is None else {"content": content}
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **fields}


USAGE = {"prompt_tokens": 35, "completion_tokens": 2, "total_tokens": 37}
ROLE = {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
NULL_ROLE = {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}

# The chunks of different servers. Those at the positions 1 and 2 contain text.
TILLER = [
    ROLE | {"usage": None},
    chunk("a", usage=None),
    chunk("b", usage=None),
    chunk(usage=None),
    {"choices": [], "usage": USAGE},
]
VLLM = [ROLE, chunk("a"), chunk("b"), {"choices": [], "usage": USAGE}]
LLAMA = [NULL_ROLE, chunk("a"), chunk("b"), chunk(), {"choices": [], "usage": USAGE, "timings": {}}]
USAGE_WITH_A_CHOICE = [ROLE, chunk("a"), chunk("b"), chunk(usage=USAGE), chunk(usage=None)]


def event(payload: object, end: str = "\n") -> bytes:
    return f"data: {json.dumps(payload)}{end}{end}".encode()


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("chunks", [TILLER, VLLM, LLAMA, USAGE_WITH_A_CHOICE])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_first_token_is_the_first_chunk_with_text(chunks: list[dict], end: str) -> None:
    pieces = [(float(position), event(payload, end)) for position, payload in enumerate(chunks)]
    record = read_stream([*pieces, (9.0, DONE)])
    assert record == Record((1.0, 2.0), prompt_tokens=35, completion_tokens=2)
    assert record.time_to_first_token == 1.0
    assert record.inter_token_latencies == [1.0]


def test_an_event_arrives_with_its_last_byte() -> None:
    stream = event(chunk("ä")) + event(chunk("b", usage=USAGE))
    cut = stream.index(b"\\u00e4") + 3
    assert read_stream([(1.0, stream[:cut]), (2.0, stream[cut:])]).arrivals == (2.0, 2.0)


def test_comments_are_not_events() -> None:
    assert read_stream([(1.0, b": ping\n\n"), (2.0, event(chunk("a", usage=USAGE)))]).arrivals == (2.0,)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (event(chunk("a")) + event({"error": {"message": "the engine failed"}}), "the engine failed"),
        (event(chunk("a")) + DONE, "no usage"),
        (event({"choices": [], "usage": USAGE}), "no text"),
        (b"data: {\n\n", "malformed"),
        (event(["a"]), "malformed"),
        (event({"choices": [{}]}), "malformed"),
        (b"data: \xff\n\n", "malformed"),
        (b"", "no usage"),
    ],
)
def test_a_stream_without_a_complete_answer_is_an_error(stream: bytes, reason: str) -> None:
    record = read_stream([(1.0, stream)])
    assert record.error is not None
    assert reason in record.error


def test_percentiles_are_interpolated() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert percentile(list(range(101)), 99) == 99


POINT = Point(prompt_tokens=16, concurrency=2)


def measurement(
    *records: Record, seconds: float = 2.0, server: str = "a", point: Point = POINT
) -> Measurement:
    return Measurement(server, point, records, seconds, client_seconds=seconds / 4)


def test_figures_combine_all_rounds_of_a_server_at_a_point() -> None:
    first = measurement(Record((1.0, 1.5, 2.0), 35, 3), Record((3.0, 3.1, 3.2), 37, 3))
    second = measurement(Record((1.0, 2.0, 4.0), 35, 3), Record(error="broken"), seconds=3.0)
    [row] = summarize([first, second], tokens=3)
    assert (row.server, row.point, row.requests) == ("a", POINT, 4)
    assert (row.failed, row.error, row.wrong_lengths) == (1, "broken", 0)
    assert (row.output_tokens, row.output_tokens_per_second) == (9, 9 / 5)
    assert row.output_tokens_per_second_by_round == (3.0, 1.0)
    assert (row.time_to_first_token_p50, row.prompt_tokens_p50) == (1.0, 35)
    assert row.time_to_first_token_p99 == pytest.approx(2.96)
    assert row.inter_token_latency_p50 == 0.5
    assert row.inter_token_latency_p99 == pytest.approx(1.95)
    assert (row.tokens_per_chunk, row.client_cores) == (1.0, 0.25)


def test_servers_and_points_have_separate_figures() -> None:
    answered = Record((1.0,), 35, 1)
    other = Point(16, 8)
    rows = summarize(
        [
            measurement(answered),
            measurement(answered, point=other),
            measurement(answered, server="b"),
            measurement(answered, server="b", point=other),
            measurement(answered, answered),
        ],
        tokens=1,
    )
    assert [(row.server, row.point, row.requests) for row in by_point(rows)] == [
        ("a", POINT, 3),
        ("b", POINT, 1),
        ("a", other, 1),
        ("b", other, 1),
    ]


def test_a_server_that_only_fails_has_no_latencies() -> None:
    [row] = summarize([measurement(Record(error="broken"))], tokens=1)
    assert (row.output_tokens_per_second, row.time_to_first_token_p50, row.tokens_per_chunk) == (
        0,
        None,
        None,
    )
    assert "| – | 2 | a | 0.0 | – | – | – | – | 1 | 1 |" in table([row])
    assert json.loads(to_json([row]))["figures"][0]["inter_token_latency_p99"] is None


def test_chunks_of_several_tokens_are_detected() -> None:
    [row] = summarize([measurement(Record((1.0, 2.0), 35, 6))], tokens=6)
    assert row.tokens_per_chunk == 3.0


@pytest.fixture
def figures() -> list[Figures]:
    answered = Record((0.25, 0.35), 35, 2)
    return summarize(
        [measurement(answered, answered), measurement(answered, Record((1.0,), 35, 1), server="b")], tokens=2
    )


def test_the_table_is_in_milliseconds(figures: list[Figures]) -> None:
    header, rule, *rows = table(figures, {"x": lambda row: row.server.upper()}).splitlines()
    assert header.count("|") == rule.count("|") == rows[0].count("|")
    assert rows[0] == "| 35 | 2 | a | 2.0 | A | 250 | 250 | 100 | 100 | 2 | 0 |"


def test_the_json_has_points_and_conditions(figures: list[Figures]) -> None:
    content = json.loads(to_json(figures, machine="slow"))
    assert content["machine"] == "slow"
    assert [row["server"] for row in content["figures"]] == ["a", "b"]
    assert content["figures"][0]["prompt_tokens"] == 16
    assert content["figures"][0]["concurrency"] == 2
    assert content["figures"][0]["output_tokens_per_second_by_round"] == [2.0]


def test_answers_of_another_length_are_a_problem(figures: list[Figures]) -> None:
    [line] = problems(figures, tokens=2)
    assert line.startswith("b: 1 of 2 answers do not have 2 tokens")


def test_failures_are_a_problem_with_the_first_reason() -> None:
    failed = measurement(Record(error="answers 500: oh"), Record(error="connection failed"), server="b")
    rows = summarize([failed, measurement(Record((1.0,), 35, 2))], tokens=2)
    assert problems(rows, tokens=2) == ["b: 2 of 2 requests failed, the first one: answers 500: oh"]


def test_no_prompt_occurs_twice() -> None:
    prompts = Prompts(seed=0)
    drawn = [prompts.draw(1) for _ in range(3000)] + [prompts.draw(100) for _ in range(100)]
    assert len(set(drawn)) == len(drawn)
    assert {len(prompt.split()) for prompt in drawn} == {MIN_WORDS, 100}


def test_a_duplicate_prompt_is_replaced_by_another() -> None:
    prompts = Prompts(seed=0, vocabulary=["one", "two"])
    drawn = {prompts.draw(1) for _ in range(2**MIN_WORDS)}
    assert len(drawn) == 2**MIN_WORDS


def test_the_seed_determines_the_prompts() -> None:
    def drawn(seed: int, words: int) -> list[str]:
        prompts = Prompts(seed)
        return [prompts.draw(words) for _ in range(10)]

    assert drawn(0, 20) == drawn(0, 20)
    assert drawn(0, 20) != drawn(1, 20)
    assert all(longer.startswith(shorter) for longer, shorter in zip(drawn(0, 21), drawn(0, 20), strict=True))
