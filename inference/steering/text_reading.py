"""Reads how strongly concepts are present in given texts. Hands out probes, and takes them back computed.

Does not know what computes the probes.
"""

from dataclasses import dataclass

from inference.interface.protocol import ReadingsResult, ReadTexts
from inference.scheduling.probe import Probe
from inference.steering.steerer import Steerer


@dataclass(eq=False)
class _Job:
    request_id: str
    probes: list[Probe]
    missing: set[Probe]
    failed: bool = False


class TextReading:
    def __init__(self, steerer: Steerer) -> None:
        self._steerer = steerer
        self._owners: dict[Probe, _Job] = {}
        self._results: list[ReadingsResult] = []

    @property
    def is_idle(self) -> bool:
        return not self._owners and not self._results

    def add(self, command: ReadTexts) -> list[Probe]:
        """The probes to compute. The concept must be known, and the texts must fit the model."""
        probes = [
            Probe(prompt, text, readers=(self._steerer.reader(command.concept, first=len(prompt)),))
            for prompt, text in zip(command.prompts, command.texts, strict=True)
        ]
        job = _Job(command.request_id, probes, set(probes))
        self._owners.update(dict.fromkeys(probes, job))
        return probes

    def refuse(self, request_id: str, detail: str = "") -> None:
        """`detail`: why the texts cannot be read. Empty if the concept is not known."""
        self._results.append(ReadingsResult(request_id, None, detail))

    def owns(self, probe: Probe) -> bool:
        return probe in self._owners

    def complete(self, probe: Probe) -> None:
        """Takes a computed probe."""
        job = self._owners.pop(probe)
        job.missing.discard(probe)
        if not probe.is_finite:
            self._fail(job, "the model's output for these texts is not finite")
        elif not job.missing and not job.failed:
            readings = [reader.values for probe in job.probes for reader in probe.readers]
            self._results.append(ReadingsResult(job.request_id, readings))

    def fail(self, probe: Probe) -> None:
        """Ends the reading that needs this probe, because the probe cannot be computed."""
        self._fail(self._owners.pop(probe), "the texts cannot be computed")

    def take_results(self) -> list[ReadingsResult]:
        """The results since the last call."""
        results, self._results = self._results, []
        return results

    def _fail(self, job: _Job, detail: str) -> None:
        """Its other probes are still computed."""
        if not job.failed:
            job.failed = True
            self._results.append(ReadingsResult(job.request_id, None, detail, failed=True))
