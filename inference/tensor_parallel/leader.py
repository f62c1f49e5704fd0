"""The leader of a group: starts the followers, tells them what to run, and ends with them."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from inference.compute.batch import Batch
from inference.compute.host_batch import HostBatch
from inference.interface.config import EngineConfig
from inference.interface.errors import in_one_line
from inference.scheduling.steering import BlockVectors
from inference.tensor_parallel.errors import BrokenGroupError
from inference.tensor_parallel.messages import BankRow, Start, encode_forward, encode_start
from inference.tensor_parallel.watch import Follower, Watch

_log = logging.getLogger("tiller.worker")

_EXIT_SECONDS = 1.0
"""Time for a follower to end after its stdin is closed."""
_POLL_MILLISECONDS = 100
_NOTICE_SECONDS = 1.0
"""After a collective operation has failed: time to notice that a follower has ended."""


class Leader:
    """The followers of this process. They are its children, so that they end with it, however it ends.

    Not thread-safe.
    """

    def __init__(self, config: EngineConfig, model_directory: Path, lost: Callable[[str], None]) -> None:
        """Starts the followers, which load the model at once. Raises BrokenGroupError if they cannot start.

        `lost`: called in another thread when a follower has ended or hangs; the group is then useless.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="tiller-group-"))  # only this user can access it
        """For the group to find each other. Removed once the model is loaded."""
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._followers: list[Follower] = []
        self._bank_rows: list[BankRow] = []
        self._built: list[HostBatch] = []
        self._watch = Watch(self._followers, lost)
        try:
            for number in range(1, config.tensor_parallel):
                self._start_follower(number)
            self._watch.start()
            for number, socket in enumerate(self._sockets, start=1):
                self._wait_until_connected(socket)
                socket.send(encode_start(Start(config, str(model_directory), number)))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The followers' process ids."""
        return [follower.process.pid for follower in self._followers]

    @property
    def stopped(self) -> bool:
        """Whether this process has begun to end the group."""
        return self._watch.stopped

    @property
    def serving(self) -> bool:
        return self._watch.serving

    def serve(self) -> None:
        """To be called once all processes have loaded the model. From then on, the watch is strict."""
        self._watch.serving = True
        shutil.rmtree(self.directory, ignore_errors=True)

    def note_write(self, row: int, vectors: BlockVectors) -> None:
        """The steering bank has changed. The followers' banks change before the next run of the model."""
        self._bank_rows.append(BankRow.of(row, vectors))

    def note_batch(self, host: HostBatch) -> None:
        """A batch was built, which may have changed the block tables, even if it is never run."""
        self._built.append(host)

    @contextmanager
    def following(self, batch: Batch) -> Iterator[None]:
        """While it lasts, this process runs the model on the batch. The followers do the same.

        Raises BrokenGroupError if the run fails here: the followers then wait for the rest of it for ever.
        """
        self._send(batch)
        try:
            yield
        except Exception as error:  # any kind
            raise BrokenGroupError(self.find_fault() or in_one_line(error)) from error

    def find_fault(self) -> str | None:
        """What has happened to a follower, if an operation has failed for this reason."""
        return self._watch.wait_for_fault(_NOTICE_SECONDS)

    def close(self) -> None:
        """Ends the followers."""
        self._watch.stop()
        for follower in self._followers:
            follower.close()
        for follower in self._followers:
            follower.wait(_EXIT_SECONDS)
        for socket in self._sockets:
            socket.close()
        self._context.term()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """Kills the followers and waits for nothing. May be called in another thread."""
        for follower in self._followers:
            follower.process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _send(self, batch: Batch) -> None:
        assert batch.host is not None  # noqa: S101 - only a captured step has none
        steering = batch.steering
        frame = encode_forward(
            batch.host,
            {} if steering is None else steering.arrays,
            () if steering is None else steering.blocks or (),
            self._bank_rows,
            (host for host in self._built if host is not batch.host),
        )
        for socket in self._sockets:
            socket.send(frame)
        self._bank_rows.clear()
        self._built.clear()

    def _start_follower(self, number: int) -> None:
        socket = self._context.socket(zmq.PAIR)
        self._sockets.append(socket)
        socket.set_hwm(0)
        socket.linger = 0
        endpoint = f"ipc://{self.directory}/{number}.sock"
        socket.bind(endpoint)
        # -P: do not import a folder called `inference` from the working directory.
        command = [sys.executable, "-P", "-m", "inference.follower", endpoint]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self._followers.append(Follower(number, process))

    def _wait_until_connected(self, socket: "zmq.Socket[bytes]") -> None:
        while not socket.poll(_POLL_MILLISECONDS, zmq.POLLOUT):
            if self._watch.fault is not None:
                raise BrokenGroupError(self._watch.fault)
