"""A sign of life twice a second, however long a step; and the end of what hangs."""

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


def test_a_loop_that_hangs_ends_the_process_and_says_where() -> None:
    ended = run(0.6, "lock = threading.Lock()\nlock.acquire()\nlock.acquire()")
    assert ended.returncode == 70
    assert b"a step has not ended for 0.6 seconds" in ended.stderr
    assert b'File "<string>", line 10 in <module>' in ended.stderr


def test_a_step_that_waits_for_ever_ends_the_process_long_before_its_limit() -> None:
    began = time.monotonic()
    ended = run(300, "with steps.computing(1):\n    threading.Event().wait()")
    assert ended.returncode == 70
    assert b"has computed nothing for 3.5 seconds" in ended.stderr
    assert time.monotonic() - began < 10


def test_a_process_that_was_stopped_as_a_whole_goes_on() -> None:
    program = PROGRAM.format(limit=2, work="while True:\n    steps.turn()\n    time.sleep(0.1)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read(2) == b".."
        process.kill()


def test_a_long_step_is_no_silence_and_a_loop_that_turns_never_ends() -> None:
    turning = "for _ in range(12):\n    steps.turn()\n    time.sleep(0.2)"
    ended = run(1.5, turning)
    assert (ended.returncode, ended.stdout) == (0, b".....")


def test_it_beats_before_there_are_steps_and_outlives_whoever_listened() -> None:
    read, write = os.pipe()
    Heartbeat(write).start()
    assert os.read(read, 1) == b"."
    os.close(read)
    time.sleep(0.6)  # a beat that nobody hears
