"""What Linux tells about a process or a thread in /proc. Other systems tell nothing."""

from pathlib import Path

_STATE = 0
_PROCESSOR_TIME = slice(11, 13)


class ProcessStatus:
    """The fields of a `stat` file under /proc; see proc_pid_stat(5). Empty if there is no such file."""

    def __init__(self, file: Path) -> None:
        """Reads the file: `/proc/PID/stat`, or `/proc/PID/task/TID/stat` for one thread."""
        try:
            # The name before the fields is in brackets, and may hold spaces and brackets itself.
            self._fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            self._fields = []

    @property
    def state(self) -> str:
        """One letter, as ps(1) shows it: `S` sleeps, `D` waits for the disk. Empty: unknown."""
        return self._fields[_STATE] if self._fields else ""

    @property
    def processor_time(self) -> tuple[str, ...]:
        """In user and in kernel mode, in clock ticks. Two that differ show that the process has computed."""
        return tuple(self._fields[_PROCESSOR_TIME])
