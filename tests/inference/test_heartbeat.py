"""Tests that the worker beats twice a second, however long a step lasts, and exits when a step hangs."""

import os
import signal
import subprocess
import sys
import time

from inference.heartbeat import Heartbeat

PROGRAM = """
import sys, threading, time
from inference.heartbeat import Heartbeat
from inference.runner.step_watch import StepWatch
heartbeat, steps = Heartbeat(1), StepWatch({limit}, computes_here=True)
heartbeat.watch(steps)
heartbeat.start()
{work}
"""


def run(limit: float, work: str) -> subprocess.CompletedProcess[bytes]:
    program = PROGRAM.format(limit=limit, work=work)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)


def test_a_loop_that_hangs_ends_the_process_and_logs_a_traceback() -> None:
    ended = run(0.6, "lock = threading.Lock()\nlock.acquire()\nlock.acquire()")
    assert ended.returncode == 70
    assert b"a step has not finished within 0.6 seconds" in ended.stderr
    assert b'File "<string>", line 10 in <module>' in ended.stderr


def test_a_step_that_waits_forever_ends_the_process_long_before_the_limit() -> None:
    began = time.monotonic()
    ended = run(300, "with steps.computing(1):\n    threading.Event().wait()")
    assert ended.returncode == 70
    assert b"has computed nothing for 3.5 seconds" in ended.stderr
    assert time.monotonic() - began < 10


def test_a_process_that_was_stopped_with_sigstop_goes_on() -> None:
    program = PROGRAM.format(limit=2, work="while True:\n    steps.turn()\n    time.sleep(0.1)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read(2) == b".."
        process.kill()


def test_a_loop_that_runs_longer_than_the_limit_keeps_beating_and_is_not_ended() -> None:
    ended = run(1.5, "for _ in range(12):\n    steps.turn()\n    time.sleep(0.2)")
    assert (ended.returncode, ended.stdout) == (0, b".....")


def test_it_beats_before_the_first_step_and_after_the_reader_has_gone() -> None:
    read, write = os.pipe()
    Heartbeat(write).start()
    assert os.read(read, 1) == b"."
    os.close(read)
    time.sleep(0.6)  # one beat without a reader
