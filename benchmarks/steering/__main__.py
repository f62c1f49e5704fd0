"""`make eval`: evaluates steering and writes docs/steering-evaluation.md. Two hours on two cores."""

import argparse
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import transformers
import yaml

from app.concepts.concept import Example, digest_of
from app.concepts.neutral_texts import TRAINING_PROMPT
from benchmarks.peers.machine import describe_machine
from benchmarks.steering.compare import Arena, Comparison, Rated
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

_Result = TypeVar("_Result")

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
        help="a directory that keeps what is done, for another try with the same code and arguments. After a "
        "change of trainings, delete its files, but not its folder others",
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
        evaluation = Evaluation(llm, model, arena, arguments.resume)
        concepts = [evaluation.evaluate(subject) for subject in subjects]
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


@dataclass(frozen=True)
class Evaluation:
    """Trains concepts, and compares them with the other ways."""

    llm: LLM
    model: PlainModel
    arena: Arena
    directory: Path | None
    """Keeps what is done."""

    def evaluate(self, subject: Subject) -> Evaluated:
        """Trains a concept without its held-out pairs, and compares it."""
        return self._kept(f"{subject.name}.pickle", lambda: self._evaluate(subject))

    def _evaluate(self, subject: Subject) -> Evaluated:
        concept = self.llm.train(subject.shown, subject.name)
        assert concept.report is not None
        print(f"{subject.name}: {concept.report.summary}", flush=True)
        digest = digest_of(tuple(Example(**pair) for pair in subject.shown))
        evaluated = Evaluated(subject.name, digest, subject.held_out, concept.report)
        positive, negative = (
            self.model.logprobs([pair[side] for pair in subject.shown]) for side in ("positive", "negative")
        )
        gap = float((negative - positive).mean())
        evaluated.comparisons = [self._compare(concept, subject, sign, sign * gap) for sign in subject.goals]
        return evaluated

    def _compare(self, concept: Concept, subject: Subject, sign: int, own_loss: float) -> Comparison:
        def score(text: str) -> float:
            return sign * SCORERS[subject.name][1](text)

        def others() -> Rated:
            return self.arena.others(sign, subject.goals[sign], all_ways(self.model, subject.shown), score)

        kept = self._kept(f"others/{subject.name}{sign:+d}.pickle", others)
        comparison = self.arena.compare(concept, sign, kept, score, own_loss)
        print(f"{comparison.goal}: {_summary(comparison)}", flush=True)
        return comparison

    def _kept(self, name: str, make: Callable[[], _Result]) -> _Result:
        """What an interrupted run has kept, or a new result, which is kept if there is a directory."""
        if self.directory is None:
            return make()
        file = self.directory / name
        if not file.exists():
            made = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pickle.dumps(made))
        kept: _Result = pickle.loads(file.read_bytes())
        return kept


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
