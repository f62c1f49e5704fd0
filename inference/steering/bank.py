"""The steering vectors of running sequences, on the device. Knows no concepts and no strengths."""

import torch

from inference.compute.transfer import upload
from inference.scheduling.probe import Array32


class SteeringBank:
    """Rows with one vector per steered decoder block. Row 0 is zero. Users of equal vectors share a row.

    The tensor is allocated once and never moves, so compiled and captured code that reads it stays valid
    when concepts are added or removed.
    """

    def __init__(
        self, num_rows: int, blocks: tuple[int, ...], hidden_size: int, device: torch.device
    ) -> None:
        """`num_rows`: how many different vectors can be in use at the same time."""
        self.blocks = blocks
        """The indices of the decoder blocks whose output is steered."""
        self.vectors = torch.zeros(len(blocks), num_rows + 1, hidden_size, device=device)
        self._free = list(range(num_rows, 0, -1))
        self._rows: dict[bytes, int] = {}
        self._contents: dict[int, bytes] = {}
        self._users: dict[int, int] = {}

    @property
    def num_free_rows(self) -> int:
        return len(self._free)

    def acquire(self, vectors: Array32, num_users: int = 1) -> int | None:
        """The row for `vectors` [len(blocks), hidden_size] until all users release it. None if full."""
        content = vectors.tobytes()
        row = self._rows.get(content)
        if row is None:
            if not self._free:
                return None
            row = self._free[-1]
            # The upload does not wait for the step in flight. The copy comes after it in the stream.
            self.vectors[:, row].copy_(upload({"vectors": vectors}, self.vectors.device)["vectors"])
            self._free.pop()
            self._rows[content], self._contents[row], self._users[row] = row, content, 0
        self._users[row] += num_users
        return row

    def release(self, row: int) -> None:
        """Removes one user of the row. The row is free when it has no users left."""
        self._users[row] -= 1
        if self._users[row] == 0:
            del self._users[row], self._rows[self._contents.pop(row)]
            self._free.append(row)
