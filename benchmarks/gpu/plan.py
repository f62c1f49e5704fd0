"""The parts of the benchmark, in their order, and their time limits. Imports only the standard library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.budget import Deadline

PARTS = ("engine", "tests", "attention", "server")
SECONDS = 540.0
"""The time for which the limits below are meant: a whole run with one 8B and one 1B model on an H100."""
_FIRST_ENGINE, _TESTS, _ATTENTION, _NEXT_ENGINE, _SERVER = 150.0, 100.0, 35.0, 85.0, 170.0


@dataclass(frozen=True)
class Options:
    """How engines are built. All processes of the benchmark can read it."""

    device: str
    dtype: str
    max_batch_tokens: int
    kv_cache_gib: float | None


@dataclass(frozen=True)
class Part:
    """What a process measures."""

    kind: str
    """"engine", "attention" or "checkpoint"."""
    options: Options
    quick: bool
    model: str = ""
    directory: Path | None = None
    """Where to save a checkpoint."""


@dataclass(frozen=True)
class Entry:
    """A part of the run. `model` is "" if it measures no model."""

    kind: str
    model: str
    seconds: float
    """Its time limit, if the whole run has SECONDS."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.model}".strip()

    def deadline(self, whole: Deadline, seconds: float) -> Deadline:
        """The end of this part if it starts now, in a run of `seconds`.

        A shorter run than SECONDS keeps the limits of the first parts and drops the last parts. A longer run
        gives each part more time.
        """
        return whole.at_most(self.seconds * max(1.0, seconds / SECONDS))


def entries(parts: Sequence[str], models: Sequence[str]) -> list[Entry]:
    """The parts to run, the most important first. Raises ValueError for an unknown part."""
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"there is no part called {', '.join(sorted(unknown))}")
    first, *others = models
    ordered = [
        Entry("engine", first, _FIRST_ENGINE),
        Entry("tests", "", _TESTS),
        Entry("attention", "", _ATTENTION),
        *(Entry("engine", model, _NEXT_ENGINE) for model in others),
        *(Entry("server", model, _SERVER) for model in models),
    ]
    return [entry for entry in ordered if entry.kind in parts]
