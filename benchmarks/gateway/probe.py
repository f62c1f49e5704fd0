"""Measures the latency of a server's /health, in a separate process so that other work does not delay it.

    python -m benchmarks.gateway.probe PORT SECONDS

Prints the latencies in seconds, as JSON. All requests use one connection.
"""

import http.client
import json
import sys
import time

_PAUSE_SECONDS = 0.02


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    latencies = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        latencies.append(_ask(connection))
        time.sleep(_PAUSE_SECONDS)
    print(json.dumps(latencies))


def _ask(connection: http.client.HTTPConnection) -> float:
    started = time.perf_counter()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    if answer.status != http.HTTPStatus.OK:
        sys.exit(f"/health answered with status {answer.status}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
