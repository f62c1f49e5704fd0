"""How many tensors of a model transformers has loaded. transformers tells nobody but its progress bar."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

from inference.interface.progress import Amount, follow


class _Counter(transformers_logging.EmptyTqdm):  # type: ignore[misc]
    """Takes the place of a progress bar around a collection. It shows nothing."""

    def __init__(self, collection: Collection[Any], **options: Any) -> None:
        super().__init__(collection, **options)
        self.done, self.total = 0, len(collection)

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            yield item
            self.done += 1


@contextmanager
def following_transformers(what: str) -> Iterator[None]:
    """Reports on a block that loads a model."""
    counters: list[_Counter] = []

    def make(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not args or not isinstance(args[0], Collection):
            return factory(*args, **options)
        counters.append(_Counter(*args, **options))
        return counters[-1]

    def measure() -> Amount | None:
        return (counters[-1].done, counters[-1].total) if counters else None

    former = transformers_logging.set_tqdm_hook(make)
    try:
        with follow(what, measure, "tensors"):
            yield
    finally:
        transformers_logging.set_tqdm_hook(former)
