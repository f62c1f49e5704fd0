"""What steering costs: step times of one running batch whose rows are steered in different ways.

    .venv/bin/python benchmarks/steering_cost.py                     # the embedded model
    .venv/bin/python benchmarks/steering_cost.py --model 1b          # random weights, larger
    .venv/bin/python benchmarks/steering_cost.py --model 8b --dtype bfloat16   # on a GPU

The same sequences generate all the time. The ways to steer them take turns from step to step, so that each
is measured in the same minute on the same contexts; only differences within a run mean anything. Then a
concept is trained beside 16 streams, and a prompt of four
full steps is read beside them instead. These two do not read as many tokens: compare steps, not sums.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inference import model, sources
from inference.config import EngineConfig
from inference.engine import Engine
from inference.model import CausalLM
from inference.model_runner import ModelRunner
from inference.protocol import GenerationRequest, SamplingParams, SteeringSpec, TrainConcept
from inference.sequence import Sequence, Steering
from inference.steering.directions import Calibration, Direction

SHAPES = {
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
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 8192}
CONFIGURATIONS = (1, 8, 64, 256)
STREAMS_BESIDE_TRAINING = 16


def build(arguments: argparse.Namespace) -> Engine:
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    if arguments.model == "embedded":
        directory = sources.resolve("embedded", Path(arguments.cache_directory).expanduser())
        loaded = model.load(directory, dtype, device)
    else:
        config = AutoConfig.for_model("llama", **SHAPES[arguments.model], **COMMON)
        with device:
            loaded = CausalLM(AutoModelForCausalLM.from_config(config, dtype=dtype).eval())
    config = EngineConfig(
        seed=0, kv_cache_gib=arguments.kv_cache_gib, max_batch_tokens=arguments.max_batch_tokens
    )
    return Engine(ModelRunner(loaded, config), config)


def prompt(engine: Engine, length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, engine.runner.model.vocab_size) for _ in range(length)]


def start(engine: Engine, count: int, prompt_tokens: int) -> list[Sequence]:
    """`count` sequences that generate and do not stop."""
    for i in range(count):
        sampling = SamplingParams(temperature=0.7)
        request = GenerationRequest(f"r{i}", prompt(engine, prompt_tokens, i), 4096, sampling=sampling)
        assert engine.add(request).refusal is None
    while any(not sequence.is_decoding for sequence in engine.scheduler.sequences()):
        engine.step()
    return list(engine.scheduler.running)


def stop(engine: Engine) -> None:
    for request_id in {sequence.request_id for sequence in engine.scheduler.sequences()}:
        engine.abort(request_id)
    engine.check_integrity()


def add_concepts(engine: Engine, count: int) -> list[str]:
    blocks, size = len(engine.runner.model.blocks), engine.runner.model.hidden_size
    rng = np.random.default_rng(0)
    engine.steerer.calibration = Calibration((10.0,) * blocks, cap=0.3)
    names = [f"c{i}" for i in range(count)]
    for name in names:
        difference = rng.standard_normal((blocks, size)).astype(np.float32)
        engine.steerer.add(name, Direction(difference, dose=0.15))
    return names


def ways_to_steer(engine: Engine, count: int) -> dict[str, list[Steering | None]]:
    """What each of `count` sequences is steered by."""
    names = add_concepts(engine, max(CONFIGURATIONS))
    ways: dict[str, list[Steering | None]] = {"none": [None] * count}
    for number in CONFIGURATIONS:
        specs = [SteeringSpec((names[i % number],), 0.5 + (i % number) / number) for i in range(count)]
        ways[f"{number} configuration{'s' if number > 1 else ''}"] = [
            engine.steerer.steer(spec, 1) for spec in specs
        ]
    return ways


def timed_step(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    if engine.runner.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_ways(engine: Engine, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """By way to steer: seconds of its step in each round."""
    free_rows = engine.steerer.bank.num_free_rows
    sequences = start(engine, arguments.sequences, arguments.prompt_tokens)
    ways = ways_to_steer(engine, len(sequences))
    times: dict[str, list[float]] = {name: [] for name in ways}
    rng = random.Random(0)
    for _ in range(arguments.rounds):
        for name in rng.sample(sorted(ways), len(ways)):
            for sequence, steering in zip(sequences, ways[name], strict=True):
                sequence.steering = steering
            times[name].append(timed_step(engine))
    for sequence in sequences:
        sequence.steering = None
    stop(engine)
    for steerings in ways.values():
        for steering in steerings:
            engine.steerer.release(steering)
    if engine.steerer.bank.num_free_rows != free_rows:
        sys.exit("rows of the steering bank have leaked")
    return times


def compare(times: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median ratio of a round's two steps, and its 95% interval by bootstrap."""
    ratios = np.divide(times, reference)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def beside_streams(engine: Engine, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Step times of 16 streams: alone, while a concept is trained, while a prompt as long is read."""
    rng = random.Random(1)

    def text() -> list[int]:
        return [rng.randrange(3, engine.runner.model.vocab_size) for _ in range(20)]

    sides = [[text() for _ in range(24)] for _ in range(2)]
    command = TrainConcept("c", prompt(engine, 30, 99), *sides, [text() + text() for _ in range(12)])
    engine.steerer.calibration = None
    start(engine, STREAMS_BESIDE_TRAINING, arguments.prompt_tokens)
    alone = [timed_step(engine) for _ in range(8)]
    engine.trainer.add(command)
    training = []
    while not engine.trainer.is_idle:
        training.append(timed_step(engine))
    length = min(engine.context_length - 2, arguments.max_batch_tokens * 4)
    engine.add(GenerationRequest("long", prompt(engine, length, 7), 1))
    reading = []
    while "long" in {sequence.request_id for sequence in engine.scheduler.sequences()}:
        reading.append(timed_step(engine))
    stop(engine)
    measured = {"alone": alone, "training": training, "prompt": reading}
    return {
        name: {"steps": len(values), "median": statistics.median(values), "max": max(values)}
        for name, values in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    parser.add_argument("--kv-cache-gib", type=float, default=2.0)
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument("--no-training", action="store_true", help="leave out what is beside 16 streams")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    engine = build(arguments)
    ways = measure_ways(engine, arguments)
    print(f"{arguments.sequences} sequences of {arguments.model}, {arguments.dtype} on {arguments.device}\n")
    print("| steered by | step, median | relative | 95% interval |\n|---|---|---|---|")
    for name, seconds in ways.items():
        ratio, low, high = compare(seconds, ways["none"])
        print(
            f"| {name} | {statistics.median(seconds) * 1e3:.0f} ms | {ratio:.3f} | {low:.3f} to {high:.3f} |"
        )
    beside = {} if arguments.no_training else beside_streams(engine, arguments)
    if beside:
        print(f"\n{STREAMS_BESIDE_TRAINING} streams\n")
        print("| beside them | steps | step, median | longest |\n|---|---|---|---|")
    for name, row in beside.items():
        print(f"| {name} | {row['steps']} | {row['median'] * 1e3:.0f} ms | {row['max'] * 1e3:.0f} ms |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ways": ways, "beside": beside}, indent=2) + "\n")


if __name__ == "__main__":
    main()
