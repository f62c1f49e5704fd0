"""Runs the usual kinds of steps once at the start, so that no request waits for a compilation.

Triton compiles a kernel when it is first launched, and CUDA loads a library's kernel when it is first used.
"""

import logging
import time
from collections.abc import Callable, Iterator

import torch

from inference.interface.config import EngineConfig
from inference.interface.progress import follow
from inference.interface.requests import SamplingParams
from inference.runner.rehearsal import make_sequence, powers_of_two
from inference.scheduling.sequence import Sequence, Status

_log = logging.getLogger(__name__)

_BESIDE = 64  # tokens of a prompt beside decodes
_SAMPLING = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.0, frequency_penalty=0.5, presence_penalty=0.5),
    SamplingParams(temperature=1.0, top_logprobs=5),
    SamplingParams(temperature=1.0, logit_bias={0: 1.0}),
    SamplingParams(temperature=1.0, logit_bias={0: 100.0}),
)


def warm_up(run: Callable[[list[Sequence]], object], config: EngineConfig, longest: int) -> None:
    """Calls `run` with the sequences of each step. `longest`: the largest number of tokens of a sequence."""
    started, done = time.monotonic(), 0
    steps = list(_steps(config, longest))
    with follow("warming up", lambda: (done, len(steps)), "steps"):
        for sequences in steps:
            _try(run, sequences)
            done += 1
    _log.info("warmed up with %d steps in %.1f s", len(steps), time.monotonic() - started)


def _try(run: Callable[[list[Sequence]], object], sequences: list[Sequence]) -> None:
    try:
        run(sequences)
    except torch.AcceleratorError:
        raise  # The device is unusable for the rest of the process's life.
    except Exception as error:  # any kind: the same step may never come from a request
        _log.warning("a step of %d sequences failed in the warm-up: %r", len(sequences), error)
    for sequence in sequences:
        sequence.status = Status.FINISHED


def _steps(config: EngineConfig, longest: int) -> Iterator[list[Sequence]]:
    """Prompts of all lengths, decodes beside a prompt, and all ways to sample.

    All sequences use the first blocks of the cache, whose content does not matter.
    """
    most = min(config.max_running, config.max_batch_tokens)
    for length in powers_of_two(min(config.max_batch_tokens, longest)):
        yield [_sequence(length, config)]
    for count in powers_of_two(most):
        prompt = min(_BESIDE, config.max_batch_tokens - count, longest)
        if prompt > 1:
            yield [*(_decode(config, longest) for _ in range(count)), _sequence(prompt, config)]
    for sampling in _SAMPLING:
        for count in {1, most}:
            yield [_decode(config, longest, sampling) for _ in range(count)]


def _decode(config: EngineConfig, longest: int, sampling: SamplingParams | None = None) -> Sequence:
    length = min(2, longest)
    return _sequence(length, config, length - 1, sampling)


def _sequence(
    length: int, config: EngineConfig, computed: int = 0, sampling: SamplingParams | None = None
) -> Sequence:
    blocks = list(range(-(-length // config.block_size)))
    return make_sequence([0] * length, blocks, computed, sampling)
