"""Measures the cost of steering: step times of one running batch, with its rows steered in different ways.

    OMP_WAIT_POLICY=passive .venv/bin/python benchmarks/steering_cost.py   # the embedded model
    .venv/bin/python benchmarks/steering_cost.py --model 1b          # random weights, larger
    .venv/bin/python benchmarks/steering_cost.py --model 8b --dtype bfloat16   # on a GPU

The same sequences generate all the time. The way they are steered changes from step to step, so that all ways
are measured in the same minutes with the same contexts. Different configurations steer different blocks.
Compare only times of one run. A second measurement trains a concept while 16 streams run, and then computes
prompts with as many tokens while they run.

Set OMP_WAIT_POLICY=passive, as the server does for its workers. Otherwise torch's threads wait actively after
each operation of torch, and take the cores from the threads of the kernels.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from inference.driver import Driver
from inference.engine import Engine
from inference.interface.concepts import TrainConcept
from inference.interface.config import EngineConfig
from inference.interface.requests import GenerationRequest, SamplingParams, SteeringMode, SteeringSpec
from inference.models import causal_lm, sources
from inference.models.causal_lm import CausalLM
from inference.runner.adaptation import adapt
from inference.runner.model_runner import ModelRunner, SampledToken
from inference.scheduling.sequence import Sequence
from inference.scheduling.steering import Reader, Steering
from inference.steering.directions import Calibration, Direction, unit_vectors
from inference.steering.search import candidates, first_dose

SHAPES = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
    },
    "400m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128_256,
    },
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 8192}
CONFIGURATIONS = (1, 8, 64, 256)
STREAMS_BESIDE_TRAINING = 16
_CONCEPTS = 32
"""The vectors of all their operations fit into the bank together."""
_NORM = 10.0
"""Any norm of the activations: the random concepts only have to take time, not to have an effect."""


def llama_config(shape: str) -> PretrainedConfig:
    return AutoConfig.for_model("llama", **{**COMMON, **SHAPES[shape]})


def build(arguments: argparse.Namespace) -> Engine:
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    if arguments.model == "embedded":
        directory = sources.resolve("embedded", Path(arguments.cache_directory).expanduser())
        loaded = causal_lm.load(directory, dtype, device)
    else:
        config = llama_config(arguments.model)
        with device:
            loaded = CausalLM(AutoModelForCausalLM.from_config(config, dtype=dtype).eval())
    config = EngineConfig(
        seed=0,
        kv_cache_gib=arguments.kv_cache_gib,
        max_batch_tokens=arguments.max_batch_tokens,
        quantization=arguments.quantization,
    )
    return Engine(ModelRunner(loaded, config, adapt(loaded, config)), config)


def prompt(engine: Engine, length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, engine.runner.model.vocab_size) for _ in range(length)]


def start(engine: Engine, count: int, prompt_tokens: int) -> list[Sequence]:
    """Starts `count` sequences that keep generating. Returns them when their prompts are computed."""
    driver = Driver(engine)
    for i in range(count):
        sampling = SamplingParams(temperature=0.7)
        driver.add(GenerationRequest(f"r{i}", prompt(engine, prompt_tokens, i), 4096, sampling=sampling))
    driver.run_until(lambda: all(sequence.is_decoding for sequence in engine.scheduler.sequences()))
    return list(engine.scheduler.running)


def stop(engine: Engine) -> None:
    for request_id in {sequence.request_id for sequence in engine.scheduler.sequences()}:
        engine.abort(request_id)
    engine.check_integrity()


def add_concepts(engine: Engine, count: int, sets: list[tuple[int, ...]]) -> list[str]:
    """Adds concepts with random directions. They take turns in which of the sets of blocks they steer."""
    rng = np.random.default_rng(0)
    engine.steerer.calibration = Calibration((_NORM,) * len(engine.runner.model.layers), cap=0.3)
    names = [f"c{i}" for i in range(count)]
    for i, name in enumerate(names):
        engine.steerer.add(name, random_direction(rng, sets[i % len(sets)], engine.runner.model.hidden_size))
    return names


def random_direction(rng: np.random.Generator, blocks: tuple[int, ...], hidden_size: int) -> Direction:
    return Direction(
        blocks=blocks,
        units=unit_vectors(rng.standard_normal((len(blocks), hidden_size)).astype(np.float32)),
        lengths=(first_dose(blocks) * _NORM,) * len(blocks),
        down_scale=1.0,
        max_strength=2.0,
        max_down_strength=2.0,
        reading_block=blocks[0],
        reading_range=(0.0, 1.0),
    )


def ways_to_steer(
    engine: Engine,
    count: int,
    configurations: Collection[int],
    sets: list[tuple[int, ...]] | None = None,
) -> dict[str, list[Steering | None]]:
    """For each way to steer: the steering of each of `count` sequences.

    The first way steers nothing. Each other way uses one of the numbers of configurations. Configurations
    take turns in which of the `sets` of blocks they steer. None: those among which training chooses.
    """
    sets = sets or candidates(len(engine.runner.model.layers), None)
    names = add_concepts(engine, max(configurations), sets)
    ways: dict[str, list[Steering | None]] = {"none": [None] * count}
    for number in configurations:
        # The configurations of a smaller number are among those of a larger one, so that all fit into the
        # bank together. Otherwise each step would send vectors that the step before has displaced.
        share = 1 / max(configurations)
        specs = [SteeringSpec({names[i % number]: 0.5 + (i % number) * share}) for i in range(count)]
        ways[f"{number} configuration{'s' if number > 1 else ''}"] = [
            engine.steerer.steer(spec, 1).steering for spec in specs
        ]
    return ways


def run_step_by_step(engine: Engine) -> None:
    """From now on, the engine launches no step before the previous step has ended."""
    engine.runner.can_be_followed = lambda step: False  # noqa: ARG005


def timed_step(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    if engine.runner.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_ways(
    engine: Engine, arguments: argparse.Namespace, configurations: Collection[int] = CONFIGURATIONS
) -> dict[str, list[float]]:
    """Returns, for each way to steer, the seconds of its step in each round."""
    run_step_by_step(engine)
    sequences = start(engine, arguments.sequences, arguments.prompt_tokens)
    ways = ways_to_steer(engine, len(sequences), configurations)
    operations = {name: [Operation(steering) for steering in steerings] for name, steerings in ways.items()}
    return measure_operations(engine, sequences, operations, arguments.rounds)


@dataclass(frozen=True)
class Operation:
    """What a step does to one sequence's activations, and what it reads from them."""

    steering: Steering | None = None
    readers: tuple[Reader, ...] = ()


def other_operations(engine: Engine, sequences: list[Sequence]) -> dict[str, list[Operation]]:
    """Readings and modes for each sequence, with one of _CONCEPTS concepts."""
    count = len(sequences)
    concepts = add_concepts(engine, _CONCEPTS, candidates(len(engine.runner.model.layers), None))
    names = [concepts[i % _CONCEPTS] for i in range(count)]

    def read(number: int) -> list[Operation]:
        return [
            Operation(
                readers=tuple(
                    engine.steerer.reader(names[(i + offset) % count], first=1) for offset in range(number)
                )
            )
            for i in range(count)
        ]

    def steer(mode: SteeringMode) -> list[Operation]:
        specs = [SteeringSpec({name: 1.0}, mode=mode) for name in names]
        return [Operation(engine.steerer.steer(spec, 1).steering) for spec in specs]

    return {
        "none": [Operation()] * count,
        "reading of one concept": read(1),
        "reading of four concepts": read(4),
        "ablation": steer(SteeringMode.ABLATE),
        "clamping": steer(SteeringMode.CLAMP),
    }


def measure_others(engine: Engine, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Like `measure_ways`, for readings and modes."""
    run_step_by_step(engine)
    sequences = start(engine, arguments.sequences, arguments.prompt_tokens)
    operations = other_operations(engine, sequences)
    return measure_operations(engine, sequences, operations, arguments.rounds)


def measure_operations(
    engine: Engine, sequences: list[Sequence], operations: dict[str, list[Operation]], rounds: int
) -> dict[str, list[float]]:
    """Changes the sequences' operations from step to step. Ends the sequences."""
    times: dict[str, list[float]] = {name: [] for name in operations}
    rng = random.Random(0)
    for _ in range(rounds):
        for name in rng.sample(sorted(operations), len(operations)):
            for sequence, operation in zip(sequences, operations[name], strict=True):
                sequence.steering, sequence.readers = operation.steering, operation.readers
            times[name].append(timed_step(engine))
    for sequence in sequences:
        sequence.steering, sequence.readers = None, ()
    stop(engine)
    return times


def compare(times: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median ratio of the two steps of a round, and its 95% bootstrap interval."""
    ratios = np.divide(times, reference)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def faster_half(times: Collection[float]) -> float:
    """Mean of the faster half of the times. Other work on the machine changes it least."""
    return float(np.mean(sorted(times)[: -(-len(times) // 2)]))


def undisturbed(times: list[float], reference: list[float]) -> float:
    """Ratio of the means of the faster halves."""
    return faster_half(times) / faster_half(reference)


@dataclass
class Beside:
    """Step times while the streams run, and the number of tokens that these steps computed for other work."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def step(self, engine: Engine) -> None:
        self.seconds.append(timed_step(engine))


def beside_streams(engine: Engine, arguments: argparse.Namespace) -> dict[str, Beside]:
    """Measures 16 streams alone, during a training, and during prompts with as many tokens."""
    rng = random.Random(1)

    def text() -> list[int]:
        return [rng.randrange(3, engine.runner.model.vocab_size) for _ in range(20)]

    count = arguments.pairs
    question = prompt(engine, 30, 99)
    command = TrainConcept(
        concept="c",
        prompt_token_ids=question,
        pair_prompts=[question] * count,
        positive=[text() for _ in range(count)],
        negative=[text() for _ in range(count)],
        neutral=[text() + text() for _ in range(count // 2)],
        questions=[text() for _ in range(10)],
    )
    engine.steerer.calibration = None
    streams = set(start(engine, STREAMS_BESIDE_TRAINING, arguments.prompt_tokens))
    alone, training, reading = Beside(), Beside(), Beside()
    current = alone
    run = engine.runner.launch

    def counting(scheduled: list[Sequence]) -> list[SampledToken]:
        others = (sequence for sequence in scheduled if sequence not in streams)
        current.tokens += sum(sequence.num_scheduled_tokens for sequence in others)
        return run(scheduled)

    engine.runner.launch = counting
    for _ in range(16):
        alone.step(engine)
    current = training
    engine.trainer.add(command)
    while not engine.trainer.is_idle:
        training.step(engine)
    current = reading
    longest = engine.context_length - 2
    while (left := training.tokens - reading.tokens) > 0:
        engine.add(GenerationRequest("long", prompt(engine, min(left, longest), reading.tokens), 1))
        while "long" in {sequence.request_id for sequence in engine.scheduler.sequences()}:
            reading.step(engine)
    engine.runner.launch = run
    stop(engine)
    return {"nothing": alone, "a concept being trained": training, "prompts being read": reading}


def print_beside(measured: dict[str, Beside]) -> None:
    """Prints a table. The delay is the time of all steps minus that of as many steps of the streams alone."""
    print(f"\n{STREAMS_BESIDE_TRAINING} streams\n")
    print("| other work | tokens | steps | step, median | longest | total delay | per token |")
    print("|---|---|---|---|---|---|---|")
    step = statistics.median(measured["nothing"].seconds)
    for name, beside in measured.items():
        seconds = beside.seconds
        delay = sum(seconds) - len(seconds) * step
        each = f"{delay / beside.tokens * 1e3:.2f} ms" if beside.tokens else ""
        times = f"{statistics.median(seconds) * 1e3:.0f} ms | {max(seconds) * 1e3:.0f} ms"
        print(f"| {name} | {beside.tokens} | {len(seconds)} | {times} | {delay:.1f} s | {each} |")


def print_ways(ways: dict[str, list[float]]) -> None:
    """Prints a table of step times, relative to steps without steering."""
    print("| every row has | step, median | relative | 95% interval | faster halves |\n|---|---|---|---|---|")
    for name, seconds in ways.items():
        ratio, low, high = compare(seconds, ways["none"])
        median, halves = statistics.median(seconds) * 1e3, undisturbed(seconds, ways["none"])
        print(f"| {name} | {median:.0f} ms | {ratio:.3f} | {low:.3f} to {high:.3f} | {halves:.3f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", default="none", choices=["none", "integer"])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    parser.add_argument("--kv-cache-gib", type=float, default=4.0)
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument("--pairs", type=int, default=12, help="contrastive pairs of the trained concept")
    parser.add_argument("--no-training", action="store_true", help="skip the measurement with 16 streams")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    engine = build(arguments)
    print(f"{arguments.sequences} sequences of {arguments.model}, {arguments.dtype} on {arguments.device}\n")
    ways = measure_ways(engine, arguments)
    print_ways(ways)
    others = measure_others(engine, arguments)
    print_ways(others)
    beside = {} if arguments.no_training else beside_streams(engine, arguments)
    if beside:
        print_beside(beside)
    if arguments.json:
        figures = {name: asdict(steps) for name, steps in beside.items()}
        arguments.json.write_text(
            json.dumps({"ways": ways, "others": others, "beside": figures}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
