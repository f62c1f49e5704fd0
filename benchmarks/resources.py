"""What a server's processes use, as the operating system says. Knows no HTTP."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

MIB = 2**20

_CPUCLOCK_SCHED = 2  # of Linux: time on a processor, in nanoseconds


@dataclass(frozen=True)
class Usage:
    """Of one process, or of several together."""

    rss_bytes: int
    """Resident memory; what processes share is counted in each."""
    open_files: int
    """File descriptors, sockets among them."""
    threads: int


def find_server(port: int) -> psutil.Process:
    """The process of this user that listens on a TCP port. Raises LookupError."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise LookupError(f"no process of yours listens on port {port}")


def usage(processes: Iterable[psutil.Process]) -> Usage:
    """Of those that still run."""
    rss_bytes = open_files = threads = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess), process.oneshot():
            rss_bytes += process.memory_info().rss
            open_files += process.num_fds()
            threads += process.num_threads()
    return Usage(rss_bytes, open_files, threads)


def processor_seconds(pid: int) -> float:
    """Time that all threads of a process have been on a processor, in the kernel or not.

    This is clock_getcpuclockid(3) of Linux. psutil reads the same in ticks of 10 ms, which are many tokens.
    Raises OSError when there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
