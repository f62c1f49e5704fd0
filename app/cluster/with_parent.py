"""Becomes another program, which the system kills when the parent process ends. Needs only Python itself.

    python -m app.cluster.with_parent PARENT_PID PROGRAM ARGUMENT...

Linux keeps the setting over exec. Elsewhere, the program may outlive its parent.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # see prctl(2)


def main() -> None:
    parent, *command = sys.argv[1:]
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:  # Ray runs actors at nice 15
        with suppress(OSError):  # only some users may
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the parent has ended")
    os.execv(command[0], command)  # noqa: S606 - without a shell


if __name__ == "__main__":
    main()
