"""Send 1,000 training requests at once: which are accepted, whether these end, and how soon the rest is refused.

``python -m benchmarks.serving.refused_jobs`` prints JSON. A quarter as many connections are open: beyond 256 requests
under way, the server answers 503 to whatever comes.
"""

import argparse
import http.client
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.server import Server, serve

_N_REQUESTS, _N_CONNECTIONS = 1_000, 250
_END_SECONDS = 300.0
_BODY = json.dumps({"total_timesteps": 256, "n_eval_episodes": 0})


class Answer(NamedTuple):
    """What came of one request, and after how many milliseconds."""

    status: int
    job_id: str | None
    milliseconds: float


def send(port: int, n_requests: int) -> list[Answer]:
    """Send requests one after another over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    answers = []
    for _ in range(n_requests):
        begun = time.perf_counter()
        connection.request("POST", "/train", _BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        answers.append(Answer(response.status, content.get("job_id"), 1000 * (time.perf_counter() - begun)))
    connection.close()
    return answers


def wait(server: Server, job_ids: list[str]) -> Counter[str]:
    """Wait for all jobs to end, and count how they have."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        states = {job["job_id"]: job["status"] for job in server.call("GET", "/training/jobs")["jobs"]}
        counts = Counter(str(states[job_id]) for job_id in job_ids)
        if not counts.keys() & {"queued", "running"}:
            break
        time.sleep(0.2)
    return counts


def measure(server: Server) -> dict[str, Any]:
    """Send all of them, and describe the answers."""
    with ThreadPoolExecutor(_N_CONNECTIONS) as pool:
        parts = pool.map(send, [server.port] * _N_CONNECTIONS, [_N_REQUESTS // _N_CONNECTIONS] * _N_CONNECTIONS)
        answers = [answer for part in parts for answer in part]
    accepted = [answer.job_id for answer in answers if answer.job_id is not None]
    refused = [answer.milliseconds for answer in answers if answer.job_id is None]
    singly = [answer.milliseconds for answer in send(server.port, 20) if answer.status == 429] or [math.nan]
    return {
        "answers": Counter(answer.status for answer in answers),
        "accepted": len(accepted),
        "refused after ms, at once, median and most": [round(find(refused), 1) for find in (statistics.median, max)],
        "one by one": [round(find(singly), 1) for find in (statistics.median, max)],
        "ended": wait(server, accepted),
    }


def main() -> None:
    """Start a server, measure, and print JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as server:
        sys.stdout.write(json.dumps(measure(server), indent=2) + "\n")


if __name__ == "__main__":
    main()
