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
from inference.links.link import Link
from inference.links.parent import ParentLink


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
        serve(socket, ParentLink(socket), load_script(model), open_pipe(Path(pipe)))


def serve(socket: zmq.Socket[bytes], link: Link, script: Script, steps: int) -> None:
    """Answers at once, and steps when the load client says so, until stdin is closed.

    `socket`: the link's own, to wait for it.
    """
    poller = zmq.Poller()
    for end in (socket, steps, sys.stdin.fileno()):
        poller.register(end, zmq.POLLIN)
    while sys.stdin.fileno() not in dict(poller.poll()):
        if submit_results := _take_commands(link, script):
            link.send(StepReport(submit_results=submit_results))
        for _ in range(take(steps)):
            if events := script.step():
                link.send(StepReport(events=events))


def _take_commands(link: Link, script: Script) -> list[SubmitResult]:
    submit_results = []
    while link.poll(0):
        match link.receive():
            case GenerationRequest() as request:
                submit_results.append(script.add(request))
            case Abort(request_id=request_id, index=index):
                script.abort(request_id, index)
    return submit_results


if __name__ == "__main__":
    main()
