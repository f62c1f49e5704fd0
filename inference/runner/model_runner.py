"""Runs scheduled sequences through the model: batch, forward, sample. Makes no scheduling decisions."""

from dataclasses import dataclass

import torch

from inference.backends.backend import TORCH, Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import Batch, BatchBuilder
from inference.compute.graphs import Capture, Graphs
from inference.compute.kv_cache import KVCache
from inference.compute.sampler import Sampled, Sampler
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.protocol import TokenLogprobs
from inference.models.causal_lm import CausalLM
from inference.runner.decode_graphs import DecodeGraphs
from inference.runner.memory import num_blocks
from inference.runner.warm_up import warm_up
from inference.scheduling.probe import MAX_TOKENS_IN_FLIGHT
from inference.scheduling.sequence import Sequence
from inference.steering.bank import SteeringBank
from inference.steering.capture import ProbeResults
from inference.steering.injection import inject

_STEERED_DEPTH = 0.6  # as a share of the decoder blocks; docs/steering.md gives the reason


@dataclass(frozen=True)
class SampledToken:
    """A sequence's next token. `token_id` is sampler.NOT_A_TOKEN if the logits are not finite."""

    sequence: Sequence
    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True)
class Part:
    """One run of the model. Most steps have only one."""

    batch: Batch
    sampled: Sampled | None
    """None if no sequence samples."""
    probes: ProbeResults | None = None
    """None if the batch has no probes."""

    def read(self) -> list[SampledToken]:
        """Waits for the device and returns the sampled tokens."""
        if self.sampled is None:
            return []
        rows = zip(self.batch.sampling, *self.sampled.read(), strict=True)
        return [SampledToken(*row) for row in rows]


@dataclass(frozen=True)
class Step:
    """A step that was launched on the device."""

    sequences: list[Sequence]
    parts: list[Part]

    def read(self) -> list[SampledToken]:
        """Waits for the device, stores the results of the probes and returns the sampled tokens.

        If it fails, it has changed nothing.
        """
        tokens = [token for part in self.parts for token in part.read()]
        for part in self.parts:
            if part.probes is not None:
                part.probes.store()
        return tokens


class ModelRunner:
    def __init__(self, model: CausalLM, config: EngineConfig, backend: Backend = TORCH) -> None:
        self.model = model
        self.num_blocks = num_blocks(model, config, backend)
        self._cache = KVCache(model.layer_shapes, self.num_blocks, config.block_size, model.device)
        self._builder = BatchBuilder(
            config.block_size,
            self._cache.padding_slot,
            model.device,
            in_place=backend.attend is not None,
        )
        self._attend = backend.attend
        self._sampler = Sampler(model.vocab_size, model.device, backend.sampling, config.max_running)
        self.bank = SteeringBank(
            # Every sequence may have a different steering vector.
            num_rows=config.max_running + config.max_queued + MAX_TOKENS_IN_FLIGHT,
            blocks=_steered_blocks(model, config),
            hidden_size=model.hidden_size,
            device=model.device,
        )
        inject(model, self.bank, backend.steer)
        self._graphs: Graphs | None = None
        if backend.capture:
            self._prepare(backend.capture, config)

    @torch.inference_mode()
    def launch(self, scheduled: list[Sequence]) -> Step:
        """Computes the scheduled tokens of each sequence.

        Samples a token for each sequence that has no uncomputed tokens left. Does not wait for the device.
        """
        batches = [self._builder.build(sequences) for sequences in self._split(scheduled)]
        return Step(scheduled, [self._launch(batch) for batch in batches])

    def _split(self, scheduled: list[Sequence]) -> list[list[Sequence]]:
        """The sequences of each run of the model. Decodes stay on captured steps beside probes."""
        decodes = [sequence for sequence in scheduled if sequence.probe is None]
        probes = [sequence for sequence in scheduled if sequence.probe is not None]
        if self._graphs and decodes and probes and all(sequence.is_decoding for sequence in decodes):
            return [decodes, probes]
        return [scheduled]

    def _launch(self, batch: Batch) -> Part:
        sampling = self._sampler.prepare(batch.sampling) if batch.sampling else None
        if sampling is not None and self._graphs is not None and self._graphs.can_run(batch):
            return Part(batch, self._sampler.sample(self._graphs.run(batch), sampling))
        logits, probes = self._measure(batch) if batch.probes else (self._forward(batch), None)
        sampled = None
        if sampling is not None:
            sampled = self._sampler.sample(logits[: len(batch.sampling)], sampling)
        return Part(batch, sampled, probes)

    def _measure(self, batch: Batch) -> tuple[torch.Tensor, ProbeResults]:
        """The logits of a batch with probes, and the results of the probes."""
        with ProbeResults.capturing(self.model, batch.probes) as probes:
            logits = self._forward(batch)
        probes.score(logits[len(batch.sampling) :])
        return logits, probes

    @torch.inference_mode()
    def launch_after(self, step: Step) -> Step:
        """Launches the next decode of the sequences of `step`, before the host has read the step's tokens.

        The step must pass `can_be_followed`, and the sequences must have blocks for one more token.
        """
        [part] = step.parts
        assert part.sampled is not None  # noqa: S101 - for the type checker
        assert self._graphs is not None  # noqa: S101
        batch = self._builder.follow(part.batch, part.sampled.tokens.clamp(min=0))
        sampling = self._sampler.prepare(batch.sampling, ahead=True)
        sampled = self._sampler.sample(self._graphs.run(batch), sampling)
        return Step(batch.sampling, [Part(batch, sampled)])

    def can_be_followed(self, step: Step) -> bool:
        """Whether the host can launch the next step of the same sequences without this step's tokens."""
        if self._graphs is None or len(step.parts) > 1:
            return False
        [part] = step.parts
        return (
            self._graphs.can_run(part.batch)
            and len(step.sequences) == len(part.batch.sampling)  # none has finished since
            and not any(map(_needs_outcome, part.batch.sampling))
        )

    @torch.inference_mode()
    def _prepare(self, capture: Capture, config: EngineConfig) -> None:
        """Captures decode steps and runs the usual kinds of steps once."""
        limits = self.num_blocks * config.block_size, self.model.context_length, config.context_length
        longest = min(limit for limit in limits if limit)
        parts = self.model, self._forward, self._builder, self._cache, self.bank, config, longest
        self._graphs = DecodeGraphs(*parts).capture(capture)
        warm_up(lambda sequences: self.launch(sequences).read(), config, longest)

    def _forward(self, batch: Batch, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.model.forward(ForwardContext(batch, self._cache, self._attend), out)


def _needs_outcome(sequence: Sequence) -> bool:
    """Whether the sequence's next step needs more from this step than the sampled token on the device."""
    return sequence.num_computed_tokens == 0  # the first token is not steered, but the second may be


def _steered_blocks(model: CausalLM, config: EngineConfig) -> tuple[int, ...]:
    """The configured decoder blocks, or one at _STEERED_DEPTH. Raises ConfigError if one does not exist."""
    count = len(model.layers)
    if config.steering_blocks is None:
        return (min(round(_STEERED_DEPTH * count), count - 1),)
    for block in config.steering_blocks:
        if not 0 <= block < count:
            raise ConfigError(
                f"engine.steering_blocks contains {block}, but the model has decoder blocks 0 to {count - 1}"
            )
    return config.steering_blocks
