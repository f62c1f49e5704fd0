"""Reads from the operating system what a server's processes use. Knows no HTTP."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

MIB = 2**20

_CPUCLOCK_SCHED = 2  # Linux's clock of CPU time, in nanoseconds


@dataclass(frozen=True)
class Usage:
    """Resource use of one process, or the sum over several."""

    rss_bytes: int
    """Resident memory. Shared memory counts once for each process."""
    open_files: int
    """File descriptors, including sockets."""
    threads: int


def find_server(port: int) -> psutil.Process:
    """Finds the process of this user that listens on a TCP port. Raises LookupError."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise LookupError(f"no process of this user listens on port {port}")


def usage(processes: Iterable[psutil.Process]) -> Usage:
    """The sum over the processes that still run."""
    rss_bytes = open_files = threads = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess), process.oneshot():
            rss_bytes += process.memory_info().rss
            open_files += process.num_fds()
            threads += process.num_threads()
    return Usage(rss_bytes, open_files, threads)


def processor_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in user mode and in the kernel, in seconds.

    Computes the clock id as Linux's clock_getcpuclockid(3) does. psutil counts in ticks of 10 ms, which is
    the time of many tokens. Raises OSError if there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
