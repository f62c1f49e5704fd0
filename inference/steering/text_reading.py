"""Reads how strongly concepts are present in given texts. Hands out a few probes at a time, and takes them
back computed. Does not know what computes the probes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from inference.interface.concepts import ReadingsResult, ReadTexts
from inference.scheduling.probe import Probe
from inference.steering.steerer import Steerer


@dataclass(eq=False)
class _Job:
    request_id: str
    probes: list[Probe]
    due: deque[Probe]
    out: set[Probe] = field(default_factory=set)


class TextReading:
    def __init__(self, steerer: Steerer) -> None:
        self._steerer = steerer
        self._jobs: list[_Job] = []
        """The readings in progress, the oldest first."""
        self._owners: dict[Probe, _Job] = {}
        """The probes that were handed out and have not come back, also those of readings that have failed."""
        self._results: list[ReadingsResult] = []

    @property
    def is_idle(self) -> bool:
        return not self._jobs and not self._owners and not self._results

    @property
    def has_work(self) -> bool:
        """Whether there are probes to hand out."""
        return any(job.due for job in self._jobs)

    @property
    def num_tokens_in_flight(self) -> int:
        """How many tokens the probes have that were handed out and have not come back."""
        return sum(probe.num_tokens for probe in self._owners)

    def add(self, command: ReadTexts, arrival: float) -> None:
        """Queues a reading. The concept must be known, and the texts must fit the model."""
        probes = [
            Probe(
                prompt,
                text,
                readers=(self._steerer.reader(command.concept, first=len(prompt)),),
                scores=False,
                arrival=arrival,
            )
            for prompt, text in zip(command.prompts, command.texts, strict=True)
        ]
        self._jobs.append(_Job(command.request_id, probes, deque(probes)))

    def refuse(self, request_id: str, detail: str = "") -> None:
        """`detail`: why the texts cannot be read. Empty if the concept is not known."""
        self._results.append(ReadingsResult(request_id, None, detail))

    def next_work(self, room: int) -> list[Probe]:
        """The next probes to compute, up to `room` tokens. At least one if none is in flight, however long.

        First come, first served.
        """
        taken: list[Probe] = []
        for job, probe in self._due():
            if probe.num_tokens > room and (taken or self._owners):
                break
            job.due.popleft()
            job.out.add(probe)
            self._owners[probe] = job
            room -= probe.num_tokens
            taken.append(probe)
        return taken

    def owns(self, probe: Probe) -> bool:
        return probe in self._owners

    def complete(self, probe: Probe) -> None:
        """Takes a computed probe."""
        job = self._take_back(probe)
        if job not in self._jobs:
            return
        if not probe.is_finite:
            self._fail(job, "the model's output for these texts is not finite")
        elif not job.due and not job.out:
            self._jobs.remove(job)
            readings = [reader.values for probe in job.probes for reader in probe.readers]
            self._results.append(ReadingsResult(job.request_id, readings))

    def fail(self, probe: Probe) -> None:
        """Ends the reading that needs this probe, because the probe cannot be computed."""
        job = self._take_back(probe)
        if job in self._jobs:
            self._fail(job, "the texts cannot be computed")

    def abort(self, request_id: str) -> set[Probe]:
        """Ends a reading without a result. Returns its probes in flight, which must not come back.

        Does nothing if there is no such reading.
        """
        self._jobs = [job for job in self._jobs if job.request_id != request_id]
        self._results = [result for result in self._results if result.request_id != request_id]
        dropped = {probe for probe, job in self._owners.items() if job.request_id == request_id}
        for probe in dropped:
            del self._owners[probe]
        return dropped

    def take_results(self) -> list[ReadingsResult]:
        """The results since the last call."""
        results, self._results = self._results, []
        return results

    def _due(self) -> Iterator[tuple[_Job, Probe]]:
        """The first due probe of the oldest reading that has any, again and again until none is due."""
        for job in self._jobs:
            while job.due:
                yield job, job.due[0]

    def _take_back(self, probe: Probe) -> _Job:
        job = self._owners.pop(probe)
        job.out.discard(probe)
        return job

    def _fail(self, job: _Job, detail: str) -> None:
        """Its probes in flight are still computed, the others are not."""
        self._jobs.remove(job)
        self._results.append(ReadingsResult(job.request_id, None, detail, failed=True))
