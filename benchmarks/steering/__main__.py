"""`make eval`: evaluates steering and writes docs/steering-evaluation.md. 15 minutes on two slow cores."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import yaml

from app.concepts.concept import Example, digest_of
from app.concepts.neutral_texts import TRAINING_PROMPT
from benchmarks.steering.measure import Concept, Laboratory
from benchmarks.steering.page import faults, render
from benchmarks.steering.plain import PlainModel
from benchmarks.steering.plots import draw
from benchmarks.steering.server import Server, serving
from inference.models.sources import resolve

_HERE = Path(__file__).parent
_CONCEPTS = _HERE.parents[1] / "configs" / "concepts"
_DOCS = _HERE.parents[1] / "docs"
_HELD_OUT_EVERY = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument(
        "--block", type=int, help="decoder block to steer, from 0 (default: the server chooses)"
    )
    parser.add_argument("--output", type=Path, default=_DOCS)
    parser.add_argument("concepts", nargs="*", help="default: all concepts in configs/concepts")
    arguments = parser.parse_args()
    names = arguments.concepts or sorted(file.stem for file in _CONCEPTS.glob("*.yaml"))
    prompts = (_HERE / "prompts.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as directory, serving(Path(directory), arguments.block) as server:
        concepts = [_create(server, name) for name in names]
        _generate(server, concepts, prompts)
    _measure(concepts, Path(arguments.cache_directory).expanduser())
    draw(concepts, arguments.output / "steering-evaluation.svg")
    conditions = f"torch {torch.__version__}, transformers {transformers.__version__}, on a CPU in float32."
    (arguments.output / "steering-evaluation.md").write_text(render(concepts, prompts, conditions))
    for fault in faults(concepts):
        print(fault, file=sys.stderr)
    return 1 if faults(concepts) else 0


def _create(server: Server, name: str) -> Concept:
    """Trains a concept on the server without its held-out pairs."""
    pairs = yaml.safe_load((_CONCEPTS / f"{name}.yaml").read_text())["examples"]
    shown = [pair for i, pair in enumerate(pairs) if i % _HELD_OUT_EVERY != 1]
    held_out = [pair for i, pair in enumerate(pairs) if i % _HELD_OUT_EVERY == 1]
    answer = server.create(name, shown)
    print(f"{name}: {answer['report']['summary']}", flush=True)
    return Concept(name, digest_of(tuple(Example(**pair) for pair in shown)), held_out, answer["report"])


def _generate(server: Server, concepts: list[Concept], prompts: list[str]) -> None:
    plain = server.answer(prompts)
    for concept in concepts:
        concept.answers[0.0] = plain
        for strength in (-1.0, 1.0):
            steering = {"steering_concepts": [f"_worker/{concept.name}"], "steering_strength": strength}
            concept.answers[strength] = server.answer(prompts, **steering)


def _measure(concepts: list[Concept], cache: Path) -> None:
    model = PlainModel(resolve("embedded", cache), TRAINING_PROMPT)
    neutral = yaml.safe_load((_HERE / "neutral.yaml").read_text())["texts"]
    files = (cache / "steering").glob(f"*/*/{concepts[0].digest}.safetensors")
    newest = max(files, key=lambda file: file.stat().st_mtime)  # older versions of the training may have some
    laboratory = Laboratory(model, newest.parent, neutral)
    for concept in concepts:
        laboratory.measure(concept)
        print(
            f"{concept.name}: {concept.shifts[1.0]:+.2f} at 1, {concept.shifts[-1.0]:+.2f} at -1", flush=True
        )
    for concept, other in zip(concepts, [*concepts[1:], concepts[0]], strict=True):
        laboratory.measure_together(concept, other)


if __name__ == "__main__":
    sys.exit(main())
