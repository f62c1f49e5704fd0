"""How long the gateway waits for a worker before it acts. Knows no worker."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """All values are seconds."""

    tick: float = 0.5
    """Between two looks at a worker's signs of life. A worker gives one in each tick."""
    frozen: float = 3.5
    """A worker that gives no sign of life and does nothing for so long is killed."""
    silent: float = 15.0
    """A worker that gives no sign of life for so long is killed, even if it computes."""
    start_silence: float = 300.0
    """The same while a worker starts: nothing waits for it, and loading may hold up its signs of life."""
    good: float = 60.0
    """A worker that served for so long is replaced at once. One that did not is replaced after a delay."""
    longest_delay: float = 60.0
    """The delay doubles from one second up to this."""
