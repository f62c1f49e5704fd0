"""Reads the status of a process or thread from Linux's /proc. Other systems have none."""

from pathlib import Path

_STATE = 0
_PROCESSOR_TIME = slice(11, 13)


class ProcessStatus:
    """The fields of a `stat` file under /proc, see proc_pid_stat(5). All are empty without such a file."""

    def __init__(self, file: Path) -> None:
        """Reads the file: `/proc/PID/stat`, or `/proc/PID/task/TID/stat` for one thread."""
        try:
            # The process name before the fields is in brackets, and can contain spaces and brackets.
            self._fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            self._fields = []

    @property
    def state(self) -> str:
        """One letter, as in ps(1): `S` is sleeping, `D` is waiting for the disk. Empty if unknown."""
        return self._fields[_STATE] if self._fields else ""

    @property
    def processor_time(self) -> tuple[str, ...]:
        """Time in user mode and in kernel mode, in clock ticks. It grows only while the process computes."""
        return tuple(self._fields[_PROCESSOR_TIME])
