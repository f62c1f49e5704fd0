"""A worker process without a model: speaks the worker's protocol, and steps when the load client says so.

    python -m benchmarks.gateway.worker MODEL_DIRECTORY PIPE ENDPOINT

Like the real worker, it receives its configuration (which it ignores), sends heartbeats to stdout, and ends
when stdin is closed.
"""

import sys
from pathlib import Path

import zmq

from benchmarks.gateway.model import load_script, model_info
from benchmarks.gateway.script import Script
from benchmarks.gateway.steps import open_pipe, take
from inference.heartbeat import Heartbeat
from inference.interface import protocol
from inference.interface.protocol import StepReport
from inference.interface.requests import Abort, GenerationRequest, SubmitResult


def main() -> None:
    directory, pipe, endpoint = sys.argv[1:]
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        socket.connect(endpoint)
        socket.recv()
        Heartbeat(sys.stdout.fileno()).start()
        model = model_info(Path(directory))
        socket.send(protocol.encode(protocol.Started(model)))
        _serve(socket, load_script(model), open_pipe(Path(pipe)))


def _serve(socket: zmq.Socket[bytes], script: Script, steps: int) -> None:
    poller = zmq.Poller()
    for end in (socket, steps, sys.stdin.fileno()):
        poller.register(end, zmq.POLLIN)
    while sys.stdin.fileno() not in dict(poller.poll()):
        if submit_results := _take_commands(socket, script):
            socket.send(protocol.encode(StepReport(submit_results=submit_results)))
        for _ in range(take(steps)):
            if events := script.step():
                socket.send(protocol.encode(StepReport(events=events)))


def _take_commands(socket: zmq.Socket[bytes], script: Script) -> list[SubmitResult]:
    submit_results = []
    while socket.poll(0):
        match protocol.decode_command(socket.recv()):
            case GenerationRequest() as request:
                submit_results.append(script.add(request))
            case Abort(request_id=request_id, index=index):
                script.abort(request_id, index)
    return submit_results


if __name__ == "__main__":
    main()
