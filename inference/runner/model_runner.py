"""Runs scheduled sequences through the model: batch, forward, sample. Makes no scheduling decisions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from inference.backends.backend import TORCH, Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import Batch, BatchBuilder
from inference.compute.graphs import Capture, Graphs
from inference.compute.kv_cache import KVCache
from inference.compute.sampler import Sampled, Sampler
from inference.compute.steering import ReadingResults, needed_vectors
from inference.interface.config import EngineConfig
from inference.interface.requests import TokenLogprobs
from inference.models.causal_lm import CausalLM
from inference.runner.decode_graphs import DecodeGraphs
from inference.runner.memory import num_blocks
from inference.runner.warm_up import warm_up
from inference.scheduling.sequence import Sequence
from inference.steering.bank import SteeringBank
from inference.steering.capture import ProbeResults
from inference.steering.injection import inject
from inference.tensor_parallel.leader import Leader

_SPARE_ROWS = 64
"""Rows of the steering bank beyond one for each running sequence. A sequence alone needs up to
3 * 16 + 2: two for each concept that it projects on, one for each that it reads."""


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
    readings: ReadingResults | None = None
    """None if the batch has no readings."""

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
        """Waits for the device, stores the results of probes and readings, and returns the sampled tokens.

        If it fails, it has changed nothing.
        """
        tokens = [token for part in self.parts for token in part.read()]
        for part in self.parts:
            if part.probes is not None:
                part.probes.store()
            if part.readings is not None:
                part.readings.store()
        return tokens


def make_bank(model: CausalLM, config: EngineConfig) -> SteeringBank:
    return SteeringBank(
        # Every running sequence may have its own steering vectors.
        num_rows=config.max_running + _SPARE_ROWS,
        num_blocks=len(model.layers),
        hidden_size=model.hidden_size,
        device=model.device,
    )


class ModelRunner:
    def __init__(
        self,
        model: CausalLM,
        config: EngineConfig,
        backend: Backend = TORCH,
        leader: Leader | None = None,
    ) -> None:
        """`leader`: if other processes have parts of the model, whoever tells them what to run."""
        self.model = model
        self._leader = leader
        self.bank = make_bank(model, config)
        self.num_blocks = num_blocks(model, config, backend)
        self._cache = KVCache(model.layer_shapes, self.num_blocks, config.block_size, model.device)
        self._cache.provide_memory()
        self._builder = BatchBuilder(
            config.block_size,
            self._cache.padding_slot,
            model.device,
            self.bank.place,
            in_place=backend.attend is not None,
        )
        self._attend = backend.attend
        self._sampler = Sampler(model.vocab_size, model.device, backend.sampling, config.max_running)
        inject(model, self.bank, backend.steering)
        if leader is not None:
            self.bank.on_write, self._builder.on_build = leader.note_write, leader.note_batch
        self._graphs: Graphs | None = None
        if backend.capture or (leader is not None and model.device.type == "cuda"):
            self._prepare(backend.capture, config)

    @torch.inference_mode()
    def launch(self, scheduled: list[Sequence]) -> Step:
        """Computes the scheduled tokens of each sequence.

        Samples a token for each sequence that has no uncomputed tokens left. Does not wait for the device.
        """
        return Step(scheduled, [self._launch(self._builder.build(part)) for part in self._split(scheduled)])

    def _split(self, scheduled: list[Sequence]) -> list[list[Sequence]]:
        """The sequences of each run of the model.

        Decodes stay on captured steps beside probes, and beside decodes that are read or projected.
        """
        decodes = [sequence for sequence in scheduled if sequence.probe is None]
        simple = [sequence for sequence in decodes if _fits_graphs(sequence)]
        others = [sequence for sequence in scheduled if sequence.probe or not _fits_graphs(sequence)]
        if self._graphs and simple and others and all(sequence.is_decoding for sequence in decodes):
            return [*self._fit_bank(simple), *self._fit_bank(others)]
        return list(self._fit_bank(scheduled))

    def _fit_bank(self, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
        """Divides the sequences so that the vectors of each part fit into the bank. One part is the rule."""
        if sum(len(list(needed_vectors(sequence))) for sequence in sequences) <= self.bank.num_rows:
            yield sequences
            return
        part: list[Sequence] = []
        keys: set[bytes] = set()
        for sequence in sequences:
            needed = {vectors.key for vectors in needed_vectors(sequence)}
            if part and len(keys | needed) > self.bank.num_rows:
                yield part
                part, keys = [], set()
            part.append(sequence)
            keys |= needed
        yield part

    def _launch(self, batch: Batch) -> Part:
        sampling = self._sampler.prepare(batch.sampling) if batch.sampling else None
        if sampling is not None and self._graphs is not None and self._graphs.can_run(batch):
            return Part(batch, self._sampler.sample(self._graphs.run(batch), sampling))
        logits, probes = self._measure(batch) if batch.probes else (self._forward(batch), None)
        sampled = None
        if sampling is not None:
            sampled = self._sampler.sample(logits[: len(batch.sampling)], sampling)
        return Part(batch, sampled, probes, ReadingResults(batch.readings) if batch.readings else None)

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
    def _prepare(self, capture: Capture | None, config: EngineConfig) -> None:
        """Captures decode steps if possible, and runs the usual kinds of steps once."""
        limits = self.num_blocks * config.block_size, self.model.context_length, config.context_length
        longest = min(limit for limit in limits if limit)
        if capture is not None:
            parts = self.model, self._forward, self._builder, self._cache, self.bank, config, longest
            self._graphs = DecodeGraphs(*parts).capture(capture)
        warm_up(lambda sequences: self.launch(sequences).read(), config, longest)

    def _forward(self, batch: Batch, out: torch.Tensor | None = None) -> torch.Tensor:
        context = ForwardContext(batch, self._cache, self._attend)
        if self._leader is None:
            return self.model.forward(context, out)
        with self._leader.following(batch):
            return self.model.forward(context, out)

    def close(self) -> None:
        """Ends the other processes that have parts of the model."""
        if self._leader is not None:
            self._leader.close()
            self.model.group.leave()


def _fits_graphs(sequence: Sequence) -> bool:
    """Whether a captured step can do what is to be done to the sequence's activations."""
    steering = sequence.active_steering
    return not sequence.pending_readers and (steering is None or not steering.projections)


def _needs_outcome(sequence: Sequence) -> bool:
    """Whether the sequence's next step needs more from this step than the sampled token on the device.

    That is the case if other things are done to the activations at the next position.
    """
    if sequence.pending_readers:
        return True
    steering, position = sequence.active_steering, sequence.num_computed_tokens
    return steering is not None and len(steering.covered(position, position + 2)) == 1
