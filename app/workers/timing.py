"""Time limits for the supervision of workers. Knows no worker."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """All values are seconds."""

    tick: float = 0.5
    """Between two checks for a worker's heartbeat. A worker sends one heartbeat per tick."""
    frozen: float = 3.5
    """A worker that sends no heartbeat and uses no CPU or disk for this long is killed."""
    silent: float = 15.0
    """A worker that sends no heartbeat for this long is killed, even if it computes."""
    start_silence: float = 300.0
    """The same limit while a worker starts. Long, because loading a model may delay the heartbeat."""
    good: float = 60.0
    """A worker that served this long is replaced at once, any other worker after a delay."""
    longest_delay: float = 60.0
    """The delay starts at one second and doubles up to this value."""
