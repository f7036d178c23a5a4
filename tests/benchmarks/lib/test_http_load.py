"""The load client counts answers, and notices wrong ones."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from benchmarks.lib.http_load import Exchange, Sample, make_request, send_requests
from tests.support import serve


@pytest.mark.parametrize("n_connections", [1, 3])
def test_answers_are_counted_over_all_connections(app: FastAPI, n_connections: int) -> None:
    exchanges = [Exchange(make_request("GET", "/health"), b'"healthy"')]
    with serve(app) as port:
        sample = send_requests(port, exchanges, n_connections, seconds=0.2)
    assert sample.n_wrong == 0
    assert len(sample.latencies) >= n_connections
    assert (sample.latencies > 0).all()
    assert sample.latencies.sum() <= n_connections * sample.seconds


def test_wrong_answers_are_counted(app: FastAPI) -> None:
    exchanges = [
        Exchange(make_request("GET", "/health"), b'"healthy"'),
        Exchange(make_request("GET", "/health"), b'"ill"'),
        Exchange(make_request("GET", "/nowhere")),
        Exchange(make_request("POST", "/inference", b'{"model_name": "none", "observation": 0}'), b"no model 'none'"),
    ]
    with serve(app) as port:
        sample = send_requests(port, exchanges, 4, seconds=0.0)
    assert (sample.n_wrong, len(sample.latencies)) == (3, 4)  # the last has the wrong status


def test_answers_in_chunks_are_read_whole() -> None:
    app = FastAPI()

    async def count() -> AsyncIterator[str]:
        for i in range(100):
            yield f"{i},"

    app.get("/")(lambda: StreamingResponse(count()))
    with serve(app) as port:
        sample = send_requests(port, [Exchange(make_request("GET", "/"), b"99,")], 2, seconds=0.1)
    assert sample.n_wrong == 0


def test_percentiles_are_those_of_the_latencies() -> None:
    sample = Sample(n_wrong=0, seconds=2.0, latencies=np.array([0.001, 0.002, 0.003, 0.010]))
    assert sample.requests_per_second == 2.0
    assert sample.get_latency(50) == pytest.approx(2.5)
    assert sample.get_latency(100) == pytest.approx(10.0)
