"""LLM: concepts are trained, saved, loaded, used and read."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.concepts.concept import Concept as Definition
from app.concepts.neutral_texts import TRAINING_PROMPT
from tests.app.text.checkpoints import write_checkpoint
from tests.inference.conftest import make_model
from tests.inference.steering.conftest import plain_hidden
from tests.tiller.conftest import CONCEPT, PAIRS, MakeLLM
from tests.tiller.test_chat import QUESTION, at_step
from tiller import LLM, Concept, Example, InvalidRequestError, Request, UnknownConceptError

GREEDY = {"max_tokens": 12, "temperature": 0}
OTHER_PAIRS = [(negative, positive) for positive, negative in PAIRS]


# Training.


def test_a_concept_of_the_directory_is_trained_when_it_is_first_used(
    make_llm: MakeLLM, tmp_path: Path
) -> None:
    with make_llm(cache_directory=tmp_path) as llm:
        assert llm.concepts == [CONCEPT]
        llm.chat("hi", **GREEDY, steering={CONCEPT: 0})
        assert not llm._loaded().driver.engine.trainer.knows(digest_of(llm, CONCEPT))
        llm.chat("hi", **GREEDY, steering={CONCEPT: 1})
        assert llm._loaded().driver.engine.trainer.knows(digest_of(llm, CONCEPT))


def test_training_reports_its_progress_and_result(make_llm: MakeLLM, cache: Path) -> None:
    told: list[tuple[str, float]] = []
    with make_llm(cache_directory=cache) as llm:
        concept = llm.train(PAIRS, "mine", on_progress=lambda *progress: told.append(progress))
        assert set(llm.concepts) == {CONCEPT, "mine"}
    states = [state for state, _ in told]
    assert states[-1] == "ready"
    assert {"training", "measuring"} <= set(states)
    assert [number for _, number in told] == sorted(number for _, number in told)
    assert concept.report is not None
    assert concept.report.num_examples == len(PAIRS)
    assert concept.report.samples
    assert concept.report.samples[0].question
    assert str(concept) == f"mine: {concept.report.summary}"


@pytest.mark.parametrize("count", [0, 2])
def test_a_training_asks_as_many_questions_as_given(make_llm: MakeLLM, cache: Path, count: int) -> None:
    with make_llm(cache_directory=cache, training_questions=count) as llm:
        report = llm.train(PAIRS, "mine").report
    assert report is not None
    assert len({sample.question for sample in report.samples}) == count
    assert bool(report.answers) == bool(count)


def test_refined_directions_are_others_and_kept_apart(make_llm: MakeLLM, cache: Path) -> None:
    vectors = []
    for refine in (False, True, False):
        with make_llm(cache_directory=cache, refine=refine) as llm:
            file = cache / f"{refine}.safetensors"
            llm.train(PAIRS, "mine").save(file)
            vectors.append(load_file(file))
    plain, refined, again = vectors
    assert plain.keys() == again.keys()
    assert all((plain[name] == again[name]).all() for name in plain)
    assert plain.keys() != refined.keys()


def test_too_many_questions_are_a_value_error(make_llm: MakeLLM) -> None:
    with pytest.raises(
        InvalidRequestError, match="training_questions must be less than or equal to 20, got 21"
    ) as caught:
        make_llm(training_questions=21)
    assert caught.value.param == "training_questions"


def test_all_forms_of_pairs_make_the_same_concept(llm: LLM) -> None:
    with_prompt = [Example(positive, negative, "hi") for positive, negative in PAIRS]
    forms = [
        llm.train(PAIRS, prompts="hi"),
        llm.train([list(pair) for pair in PAIRS], prompts=["hi"] * len(PAIRS)),
        llm.train(with_prompt),
        llm.train([{"positive": p, "negative": n, "prompt": "hi"} for p, n in PAIRS], prompts="other"),
    ]
    assert {concept.name for concept in forms} == {Definition("", "", tuple(with_prompt), 0).digest}
    assert llm.train(PAIRS).name != forms[0].name


def test_a_name_gets_other_pairs(llm: LLM) -> None:
    first = llm.train(PAIRS, "changing")
    before = llm.read("changing", PAIRS[0][0])[0].mean
    second = llm.train(OTHER_PAIRS, "changing")
    after = llm.read("changing", PAIRS[0][0])[0].mean
    assert llm.concept("changing") is second is not first
    assert before > 0.5 > after


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_training_leaves_no_concept(make_llm: MakeLLM, cache: Path) -> None:
    with make_llm(cache_directory=cache) as llm:
        with at_step(llm, 2, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            llm.train(PAIRS, "mine")
        assert llm.concepts == [CONCEPT]
        assert llm.chat("hi", **GREEDY).token_ids
        assert llm._loaded().driver.engine.is_idle
        assert llm.train(PAIRS, "mine").report is not None


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "pairs must have 1 to 1000 items, got 0"),
        ([("a", "a")], {}, "pairs[0].negative must differ from positive, got 'a'"),
        ([("a", "b"), ("a", " ")], {}, "pairs[1].negative must not be blank, got ' '"),
        ([("a", 5)], {}, "pairs[0].negative must be a string, got 5"),
        (["ab"], {}, "pairs[0] must be a pair (positive, negative), a dictionary or an Example, got 'ab'"),
        ([{"positive": "a"}], {}, "pairs[0].negative is required"),
        (
            [{"positive": "a", "negative": "b", "promt": "c"}],
            {},
            "pairs[0] must have the keys positive, negative and perhaps prompt, got 'promt'",
        ),
        (
            [("a", "b")],
            {"prompts": ["hi", "how"]},
            "prompts must have as many entries as there are pairs, 1, got 2",
        ),
        ([("a", "b")], {"name": "not a name"}, "name must match"),
        ([("a", "b")], {"name": "0" * 64}, "name is a digest, but not the digest of these pairs or vectors"),
    ],
)
def test_bad_pairs_are_a_value_error(
    llm: LLM, pairs: list[object], options: dict[str, object], message: str
) -> None:
    before = llm.concepts
    with pytest.raises(InvalidRequestError) as caught:
        llm.train(pairs, **options)
    assert str(caught.value).startswith(message)
    assert llm.concepts == before


# Steering.


def test_a_mixed_batch_of_steered_requests_gives_what_each_gives_alone(llm: LLM) -> None:
    other = llm.train(OTHER_PAIRS, "other")
    ways: list[dict[str, object]] = [
        {},
        {"steering": {CONCEPT: 1.5}},
        {"steering": {CONCEPT: -1, other: 0.5}, "scope": "answer"},
        {"steering": {other: 1}, "mode": "ablate", "readings": [CONCEPT, other]},
        {"steering": {CONCEPT: 1}, "when": {"concept": other, "above": -100}},
        {"steering": {CONCEPT: 1}, "when": {"concept": CONCEPT, "below": -100}},
    ]
    requests = [Request(messages=QUESTION, **GREEDY, **way) for way in ways]
    together = llm.generate_many(requests)
    assert [answer.token_ids for answer in together] == [
        llm.chat(QUESTION, **GREEDY, **way).token_ids for way in ways
    ]
    assert together[0].token_ids == together[5].token_ids  # its condition is not met
    assert list(together[3].readings) == [CONCEPT, "other"]
    assert {len(numbers) for numbers in together[3].readings.values()} == {len(together[3].token_ids)}


def test_an_answer_says_which_strength_was_applied(llm: LLM, tmp_path: Path) -> None:
    llm.concept(CONCEPT).save(tmp_path / "file")
    with safe_open(tmp_path / "file", framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(tmp_path / "file"), tmp_path / "weak", metadata | {"max_strength": "0.5"})
    weak = llm.add(Concept.load(tmp_path / "weak", name="weak"))
    steerings = [{weak: 0.5}, {weak: 1}, {weak: 2, CONCEPT: 0}]
    answers = [llm.chat(QUESTION, **GREEDY, steering=steering) for steering in steerings]
    assert [answer.applied for answer in answers] == [{}, {"weak": 0.5}, {"weak": 0.5}]
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize(
    "options",
    [{"steering": {"unknown": 1}}, {"readings": "unknown"}, {"when": {"concept": "unknown", "above": 0}}],
)
def test_an_unknown_concept_is_a_key_error(llm: LLM, options: dict[str, object]) -> None:
    with pytest.raises(KeyError) as caught:
        llm.chat("hi", **options)
    assert isinstance(caught.value, UnknownConceptError)
    assert (
        str(caught.value)
        == f"concept 'unknown' is unknown; the known ones are: {', '.join(sorted(llm.concepts))}"
    )
    with pytest.raises(UnknownConceptError):
        llm.concept("unknown")
    with pytest.raises(UnknownConceptError):
        llm.read("unknown", "hi")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steering": {CONCEPT: 3}}, "steering.weather must be a number from -2 to 2, got 3"),
        ({"steering": 1.0}, "steering must map concepts to strengths, got 1.0"),
        ({"steering": {f"c{i}": 1 for i in range(17)}}, "steering must name at most 16 concepts"),
        ({"readings": [5]}, "readings[0] must match"),
        ({"when": {"concept": CONCEPT}}, "when must have above or below"),
        ({"when": {"concept": CONCEPT, "above": 1}, "scope": "prompt"}, "scope must be all or answer"),
    ],
)
def test_bad_steering_is_a_value_error(llm: LLM, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat("hi", **options)
    assert str(caught.value).startswith(message)


# Files.


def test_a_saved_concept_steers_another_llm_in_the_same_way(
    llm: LLM, make_llm: MakeLLM, cache: Path, tmp_path: Path
) -> None:
    trained = llm.train(PAIRS, "mine", description="small talk")
    ways = [{"steering": {"mine": strength}, "readings": "mine"} for strength in (1.0, -0.5)]
    expected = [llm.chat(QUESTION, **GREEDY, **way) for way in ways]
    trained.save(tmp_path / "mine.safetensors")
    with make_llm(cache_directory=cache) as other:
        loaded = Concept.load(tmp_path / "mine.safetensors")
        assert (loaded.name, loaded.description, loaded.report) == ("mine", "small talk", None)
        added = other.add(loaded)
        assert added.report is not None
        assert added.report.works is None
        answers = [other.chat(QUESTION, **GREEDY, **way) for way in ways]
        steerer = other._loaded().driver.engine.steerer
        steered = steerer.get(digest_of(other, "mine")).vectors(1.0)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    original = llm._loaded().driver.engine.steerer.get(digest_of(llm, "mine")).vectors(1.0)
    np.testing.assert_array_equal(steered, original)
    for answer, one in zip(answers, expected, strict=True):
        assert answer.readings["mine"] == pytest.approx(one.readings["mine"], abs=1e-3)


def test_a_concept_of_a_float32_llm_steers_one_that_loads_the_same_checkpoint_in_bfloat16(
    make_llm: MakeLLM, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "tiny")
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(tmp_path / "tiny")
    with make_llm(tmp_path / "tiny", dtype="float32") as wide:
        wide.concept(CONCEPT).save(tmp_path / "file")
        [expected] = wide.read(CONCEPT, [PAIRS[0][0]])
    with make_llm(tmp_path / "tiny", dtype="bfloat16") as narrow:
        narrow.add(Concept.load(tmp_path / "file", name="imported"))
        [reading] = narrow.read("imported", [PAIRS[0][0]])
        assert narrow.chat(QUESTION, **GREEDY, steering={"imported": 1}).token_ids
    assert reading.mean == pytest.approx(expected.mean, abs=0.05)
    assert expected.mean > 0.5


def test_a_saved_concept_is_a_safetensors_file_with_unit_vectors(llm: LLM, tmp_path: Path) -> None:
    concept = llm.concept(CONCEPT)
    concept.save(tmp_path / "file")
    vectors = load_file(tmp_path / "file")
    assert concept.report is not None
    blocks = {*concept.report.blocks, concept.report.reading_block}
    assert set(vectors) == {f"direction.{block}" for block in blocks}
    assert [np.linalg.norm(vector) for vector in vectors.values()] == pytest.approx(
        [1] * len(vectors), abs=1e-5
    )


def test_loaded_vectors_are_measured_with_pairs(
    llm: LLM, make_llm: MakeLLM, cache: Path, tmp_path: Path
) -> None:
    llm.concept(CONCEPT).save(tmp_path / "file")
    with make_llm(cache_directory=cache) as other:
        added = other.add(Concept.load(tmp_path / "file", name="measured"), PAIRS)
        assert added.report is not None
        assert (added.name, added.report.num_examples) == ("measured", len(PAIRS))
        assert "measured" in other.concepts


def test_vectors_of_other_tools_are_used_with_their_own_scale(llm: LLM, tmp_path: Path) -> None:
    vector = np.linspace(-1, 1, 32, dtype=np.float32)
    save_file({"direction.1": vector}, tmp_path / "theirs.safetensors")
    added = llm.add(Concept.load(tmp_path / "theirs.safetensors"))
    assert added.name == "theirs"
    direction = llm._loaded().driver.engine.steerer.get(digest_of(llm, "theirs"))
    assert direction.vectors(1.0) == pytest.approx(vector[None], abs=1e-6)


def test_a_name_that_requests_could_not_give_is_a_value_error(llm: LLM, tmp_path: Path) -> None:
    save_file({"direction.1": np.ones(32, np.float32)}, tmp_path / "my vectors.safetensors")
    with pytest.raises(InvalidRequestError, match=r"name of the concept must match .*, got 'my vectors'"):
        llm.add(Concept.load(tmp_path / "my vectors.safetensors"))
    assert "my vectors" not in llm.concepts


def test_vectors_of_another_model_are_a_value_error(llm: LLM, make_llm: MakeLLM, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", "chatml")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    make_model("llama", seed=1, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
    llm.concept(CONCEPT).save(tmp_path / "file")
    with make_llm(tmp_path / "other") as other, pytest.raises(ValueError, match="belong to the model"):
        other.add(Concept.load(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b"\x80\x02}q\x00.", "is a pickle"), (b"no vectors", "it is neither")],
)
def test_files_of_other_formats_are_a_value_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Concept.load(tmp_path / "file")


# Reading.


def test_readings_are_projections_of_the_activations_of_transformers(llm: LLM, checkpoint: Path) -> None:
    [reading] = llm.read(CONCEPT, "how is the weather?")
    direction = llm._loaded().driver.engine.steerer.get(digest_of(llm, CONCEPT))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    turns = [{"role": "user", "content": TRAINING_PROMPT}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    text = tokenizer("how is the weather?", add_special_tokens=False)["input_ids"]
    hidden = plain_hidden(model, prompt + text, {})[direction.reading_block, len(prompt) :].numpy()
    zero, one = direction.reading_range
    expected = (hidden @ direction.reading_unit[0] - zero) / (one - zero)
    assert [token.reading for token in reading.tokens] == pytest.approx(expected.tolist(), abs=1e-3)
    assert "".join(token.token for token in reading.tokens) == "how is the weather?"
    assert reading.mean == pytest.approx(expected.mean(), abs=1e-3)


def test_the_pairs_themselves_read_as_1_and_0(llm: LLM) -> None:
    means = [
        np.mean([reading.mean for reading in llm.read(llm.concept(CONCEPT), [pair[side] for pair in PAIRS])])
        for side in (0, 1)
    ]
    assert means == pytest.approx([1, 0], abs=0.15)


def test_a_conversation_has_one_entry_with_all_its_tokens(llm: LLM) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "how is the weather?"}]
    [reading] = llm.read(CONCEPT, turns)
    text = "".join(token.token for token in reading.tokens)
    assert text.endswith("how is the weather?")
    assert "hi" in text


def digest_of(llm: LLM, name: str) -> str:
    return llm._library.find(name).digest
