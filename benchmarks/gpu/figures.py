"""What the benchmark reports. Imports only the standard library."""

from dataclasses import dataclass, field


class MeasurementError(Exception):
    """A measurement did not measure what its figure would say. There is no figure then."""


@dataclass(frozen=True)
class Limits:
    """The limits of a device."""

    bytes_per_second: float
    """Bytes read and written per second, in a copy of a large tensor."""
    flops: float
    """Floating-point operations per second in a large matrix product."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    model: str
    what: str
    meaning: str
    seconds: float
    """Time of a step, or of the measured work."""
    tokens_per_second: float | None = None
    share_of_limit: float | None = None
    """The least time that the limits allow, divided by the measured time."""
    ratio: float | None = None
    """The measured time, divided by the time of the same step without the option."""
    ratio_range: tuple[float, float] | None = None
    """The quartiles of the ratio, over the rounds."""
    counts: dict[str, float] = field(default_factory=dict)
    """What was counted while measuring, by name. Shows that the measurement is valid."""


@dataclass(frozen=True)
class Note:
    """Says why there is no figure."""

    text: str


HEADER = "| model | what | ms | tokens/s | share of limit | ratio |\n|---|---|---|---|---|---|"


def row(figure: Figure) -> str:
    """The figure as a row of a Markdown table."""
    cells = [
        figure.model,
        figure.what,
        f"{figure.seconds * 1e3:.2f}",
        _format(figure.tokens_per_second, 0),
        _format(figure.share_of_limit, 3),
        _format(figure.ratio, 3),
    ]
    return f"| {' | '.join(cells)} |"


def _format(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"
