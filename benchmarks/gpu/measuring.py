"""Measures the parts that compute in this process: engines, and attention alone."""

import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu import attention, checkpoint
from benchmarks.gpu import limits as device_limits
from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.engines import Engines, Memory
from benchmarks.gpu.figures import Figure, Limits, Note
from benchmarks.gpu.plan import Options, Part
from benchmarks.gpu.speed import Speed
from inference.engine import Engine

_STEERED_SHARE = 0.8
"""Training does not steer the last fifth of the decoder blocks."""
_DEFAULT_DEPTH = 0.6


class Measuring:
    """The measurements of one process. Measures the limits of the device once."""

    def __init__(self, options: Options) -> None:
        self._device = torch.device(options.device)
        self._dtype = getattr(torch, options.dtype)
        self._memory = Memory(self._device)
        self._limits: Limits | None = None

    def run(self, part: Part, deadline: Deadline) -> Iterator[Figure | Note | Limits]:
        """Yields each figure at once. Raises OutOfTimeError, MeasurementError, and what torch raises."""
        deadline.check()
        if part.kind == "checkpoint":
            assert part.directory is not None
            yield checkpoint.save(part.model, self._dtype, self._device, part.directory)
            return
        if self._limits is None:
            small = part.quick and self._device.type == "cpu"
            self._limits = device_limits.measure(
                self._device,
                self._dtype,
                copied_bytes=2**24 if small else 2**31,
                size=512 if small else 8192,
            )
            yield self._limits
        if part.kind == "attention":
            small = part.quick and self._device.type == "cpu"
            yield from attention.compare(self._device, self._dtype, self._limits, deadline, small=small)
        else:
            yield from measure_model(part, self._limits, deadline)

    def check_memory(self) -> float:
        """Returns the GiB that are not freed after a part. Raises MeasurementError if these are too many."""
        return self._memory.check()


def measure_model(part: Part, limits: Limits, deadline: Deadline) -> Iterator[Figure | Note]:
    """Measures one model. Steering is measured at one block, at different blocks, and at many blocks."""
    engines = Engines(part.model, part.options)
    yield Figure(
        part.model,
        "weights",
        "random weights are made, verified against transformers' own code, and fused",
        engines.seconds,
    )
    work = device_limits.work_of(engines.model)
    counts, context, steps, prompts = ((1, 4), 64, 4, 2) if part.quick else ((1, 8, 64, 256), 1024, 64, 16)
    rounds, short = (2, 4) if part.quick else (6, 16)

    def all_figures(engine: Engine) -> Iterator[Figure | Note]:
        speed = Speed(engine, part.model, limits, work, deadline)
        yield from speed.first_token(context)
        for count in counts:
            yield from speed.decode(count, context, steps)
        yield from speed.prefill(prompts, context)
        if most := max((count for count in counts if speed.fits(count, context)), default=0):
            one, *others = steered_sets(len(engine.runner.model.layers)).items()
            yield from speed.steering(most, context, short, rounds, *one)
            yield from speed.sampling(most, context, steps)
            for where in others:
                yield from speed.steering(most, context, short, rounds, *where)

    yield from engines.measure(all_figures, deadline)


def steered_sets(num_layers: int) -> dict[str, list[tuple[int, ...]]]:
    """Sets of blocks among which configurations take turns, with words for them."""
    blocks = range(int(num_layers * _STEERED_SHARE))
    return {
        "1 steered block": [(int(num_layers * _DEFAULT_DEPTH),)],
        f"each at 1 of {len(blocks)} blocks": [(block,) for block in blocks],
        f"{len(blocks)} steered blocks": [tuple(blocks)],
    }


def describe(options: Options) -> dict[str, object]:
    """The device and the versions of what runs on it."""
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "device_memory_gib": round(torch.cuda.mem_get_info(device)[1] / 2**30, 1) if cuda else None,
        "device_free_gib": round(torch.cuda.mem_get_info(device)[0] / 2**30, 1) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "triton", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().partition("\n")[0] or "unknown"
