"""`make eval`: evaluates steering and writes docs/steering-evaluation.md. Two hours on two cores."""

import argparse
import pickle
import sys
from pathlib import Path

import torch
import transformers
import yaml

from app.concepts.concept import Example, digest_of
from app.concepts.neutral_texts import TRAINING_PROMPT
from benchmarks.peers.machine import describe_machine
from benchmarks.steering.compare import Arena, Comparison
from benchmarks.steering.measure import Evaluated, Laboratory
from benchmarks.steering.page import render
from benchmarks.steering.plain import PlainModel
from benchmarks.steering.plots import draw
from benchmarks.steering.requirements import faults
from benchmarks.steering.scorers import SCORERS
from benchmarks.steering.subjects import Subject, load_subjects
from benchmarks.steering.ways import all_ways
from inference.models.sources import resolve
from inference.steering.direction_files import DirectionFiles
from tiller import LLM, Concept

_HERE = Path(__file__).parent
_DOCS = _HERE.parents[1] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument("--quantization", choices=("none", "integer"), default="integer")
    parser.add_argument("--refine", action="store_true", help="trainings refine directions by gradients")
    parser.add_argument("--prompts", type=int, default=48, help="how many of prompts.txt; at least 2")
    parser.add_argument("--output", type=Path, default=_DOCS)
    parser.add_argument(
        "--resume",
        type=Path,
        help="a directory that keeps what is done, for another try with the same code and arguments",
    )
    parser.add_argument("concepts", nargs="*", help="default: all")
    arguments = parser.parse_args()
    cache = Path(arguments.cache_directory).expanduser()
    subjects = load_subjects(arguments.concepts)
    prompts = (_HERE / "prompts.txt").read_text().splitlines()[: arguments.prompts]
    model = PlainModel(resolve("embedded", cache), TRAINING_PROMPT)
    settings = {"quantization": arguments.quantization, "cache_directory": cache, "kv_cache_gib": 0.5}
    with LLM(**settings, refine=arguments.refine) as llm, LLM(**settings, training_questions=0) as other:
        arena = Arena(llm, other, model, prompts)
        concepts = [_kept_or_new(arguments.resume, llm, model, arena, subject) for subject in subjects]
    _measure(concepts, model, cache)
    machine = describe_machine()
    conditions = (
        f"{machine['processor']}, {machine['cores']} cores; torch {torch.__version__}, transformers "
        f"{transformers.__version__}; quantization {arguments.quantization}"
        f"{', refined directions' if arguments.refine else ''}."
    )
    (arguments.output / "steering-evaluation.md").write_text(render(concepts, prompts, conditions))
    draw(concepts, arguments.output / "steering-evaluation.svg")
    found = faults(concepts)
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


def _kept_or_new(
    directory: Path | None, llm: LLM, model: PlainModel, arena: Arena, subject: Subject
) -> Evaluated:
    """What an interrupted run has kept, or a new evaluation, which is kept if there is a directory."""
    if directory is None:
        return _evaluate(llm, model, arena, subject)
    file = directory / f"{subject.name}.pickle"
    if not file.exists():
        evaluated = _evaluate(llm, model, arena, subject)
        directory.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(evaluated))
    kept: Evaluated = pickle.loads(file.read_bytes())
    return kept


def _evaluate(llm: LLM, model: PlainModel, arena: Arena, subject: Subject) -> Evaluated:
    """Trains a concept without its held-out pairs, and compares it with the other ways."""
    concept = llm.train(subject.shown, subject.name)
    assert concept.report is not None
    print(f"{subject.name}: {concept.report.summary}", flush=True)
    digest = digest_of(tuple(Example(**pair) for pair in subject.shown))
    evaluated = Evaluated(subject.name, digest, subject.held_out, concept.report)
    evaluated.comparisons = list(_compare(model, arena, concept, subject))
    return evaluated


def _compare(model: PlainModel, arena: Arena, concept: Concept, subject: Subject) -> list[Comparison]:
    positive, negative = (
        model.logprobs([pair[side] for pair in subject.shown]) for side in ("positive", "negative")
    )
    gap = float((negative - positive).mean())
    ways = all_ways(model, subject.shown)
    _, score = SCORERS[subject.name]
    comparisons = []
    for sign, instruction in subject.goals.items():
        comparison = arena.compare(concept, sign, instruction, ways, score, sign * gap)
        print(f"{comparison.goal}: {_summary(comparison)}", flush=True)
        comparisons.append(comparison)
    return comparisons


def _summary(comparison: Comparison) -> str:
    best = {way: comparison.best(way) for way in comparison.ways}
    return ", ".join(f"{way} {trial.gain:+.3f}" if trial else f"{way} -" for way, trial in best.items())


def _measure(concepts: list[Evaluated], model: PlainModel, cache: Path) -> None:
    neutral = yaml.safe_load((_HERE / "neutral.yaml").read_text())["texts"]
    laboratory = Laboratory(model, _directory(concepts[0], cache), neutral)
    for concept in concepts:
        laboratory.measure(concept)
        print(
            f"{concept.name}: {concept.shifts[1.0]:+.2f} at 1, {concept.shifts[-1.0]:+.2f} at -1", flush=True
        )
    for concept, other in zip(concepts, [*concepts[1:], concepts[0]], strict=True):
        laboratory.measure_together(concept, other)


def _directory(concept: Evaluated, cache: Path) -> Path:
    """Where the cache has the direction that the report is about. Other trainings may have left more."""
    for file in (cache / "steering").glob(f"*/*/{concept.digest}.safetensors"):
        found = DirectionFiles(file.parent).load(concept.digest)
        if found is not None and found[1].effects == concept.report.effects:
            return file.parent
    raise FileNotFoundError(f"no direction of {concept.name} in {cache}")


if __name__ == "__main__":
    sys.exit(main())
