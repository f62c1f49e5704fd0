"""The worker, with a leader that sends its follower nonsense instead of the 30th run of the model."""

import itertools
import sys

from inference import worker
from inference.tensor_parallel import leader, messages

_calls = itertools.count(1)


def encode(*arguments: object) -> bytes:
    frame = messages.encode_forward(*arguments)  # type: ignore[arg-type]
    return b"nonsense" if next(_calls) == 30 else frame


if __name__ == "__main__":
    leader.encode_forward = encode
    sys.exit(worker.main())
