"""Rules for every path: HEAD, parts of files, and the names in a query."""

import gzip

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.models import make_model

GETS = ["/", "/health", "/health/live", "/health/ready", "/models", "/models/m", "/models/m/file", "/training/jobs"]
GETS += [
    "/environments",
    "/reward-functions",
    "/metrics",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/models/none",
    "/nowhere",
]


@pytest.fixture
def content(client: TestClient, settings: Settings) -> bytes:
    """The file of a model ``m``."""
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    (settings.models_dir / "m.zip").write_bytes(content)
    return content


class TestHead:
    @pytest.mark.parametrize("path", GETS)
    def test_it_answers_as_get_does_without_a_body(self, client: TestClient, content: bytes, path: str) -> None:
        got, told = client.get(path), client.head(path)
        assert (told.status_code, told.content) == (got.status_code, b"")
        assert told.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":  # which has counted the first request
            assert told.headers["content-length"] == got.headers["content-length"]

    def test_where_there_is_no_get_it_is_not_allowed(self, client: TestClient) -> None:
        assert client.head("/train").status_code == 405
        assert client.delete("/models").headers["allow"] == "GET, HEAD"


class TestParts:
    @pytest.mark.parametrize(
        ("asked", "part", "content_range"),
        [
            ("bytes=0-9", slice(0, 10), "bytes 0-9/{n}"),
            ("bytes=100-", slice(100, None), "bytes 100-{last}/{n}"),
            ("bytes=-5", slice(-5, None), "bytes {fifth_last}-{last}/{n}"),
            ("bytes=5-99999999", slice(5, None), "bytes 5-{last}/{n}"),
        ],
    )
    @pytest.mark.parametrize("path", ["/models/m/file", "/models/m/video?max_steps=2"])
    def test_a_part_is_sent(
        self, client: TestClient, content: bytes, path: str, asked: str, part: slice, content_range: str
    ) -> None:
        whole = client.get(path)
        assert whole.headers["accept-ranges"] == "bytes"
        response = client.get(path, headers={"range": asked})
        n = len(whole.content)
        assert (response.status_code, response.content) == (206, whole.content[part])
        assert response.headers["content-range"] == content_range.format(n=n, last=n - 1, fifth_last=n - 5)
        assert response.headers["etag"] == whole.headers["etag"]

    def test_beyond_the_end_there_is_none(self, client: TestClient, content: bytes) -> None:
        for asked in (f"bytes={len(content)}-", "bytes=-0"):
            response = client.get("/models/m/file", headers={"range": asked})
            assert response.status_code == 416
            assert response.headers["content-range"] == f"bytes */{len(content)}"

    @pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,3-4", "lines=0-1", "bytes=-", "bytes=a-b"])
    def test_what_is_not_one_range_gets_all(self, client: TestClient, content: bytes, asked: str) -> None:
        assert client.get("/models/m/file", headers={"range": asked}).content == content

    def test_a_download_goes_on_only_in_the_same_version(self, client: TestClient, content: bytes) -> None:
        etag = client.get("/models/m/file").headers["etag"]
        for version, status_code in ((etag, 206), ('"another"', 200)):
            headers = {"range": "bytes=9-", "if-range": version}
            assert client.get("/models/m/file", headers=headers).status_code == status_code


class TestQueries:
    @pytest.mark.parametrize(
        ("method", "path", "said"),
        [
            ("GET", "/models/m/video?max_step=5", "query.max_step: unknown parameter; did you mean max_steps?"),
            ("GET", "/training/jobs?state=running", "query.state: unknown parameter; did you mean status?"),
            ("GET", "/training/jobs?limit=1&limit=2", "query.limit: a parameter may be given only once"),
            (
                "GET",
                "/training/jobs?zzz=1",
                "query.zzz: unknown parameter; known: status, limit, after, sort, search, env_name, tag, hidden",
            ),
            ("GET", "/models?x", "query.x: unknown parameter: this path takes none in its query"),
            ("GET", "/health?x=1", "query.x: unknown parameter"),
            ("GET", "/docs?x=1", "query.x: unknown parameter: this path takes none in its query"),
            ("GET", "/openapi.json?x=1", "query.x: unknown parameter"),
            ("GET", "/redoc?x=1", "query.x: unknown parameter"),
            ("GET", "/training/jobs?limit=1_0", "query.limit: must be a whole number in plain digits"),
            ("GET", "/training/jobs?limit=%2B1", "query.limit: must be a whole number in plain digits"),
            ("GET", "/sweeps?limit=1.0", "query.limit: must be a whole number in plain digits"),
            ("GET", "/models/m/video?seed=%201", "query.seed: must be a whole number in plain digits"),
            ("GET", "/training/x/events?after=1_0", "query.after: must be a whole number in plain digits"),
            ("POST", "/train?total_timestep=5", "send the fields as JSON in the body"),
            ("POST", "/inference?model_name=m", "send the fields as JSON in the body"),
            ("DELETE", "/models/m?force=1", "query.force: unknown parameter"),
        ],
    )
    def test_a_name_that_the_path_does_not_have_is_refused(
        self, client: TestClient, content: bytes, method: str, path: str, said: str
    ) -> None:
        body = {"model_name": "m", "observation": [0.0] * 4} if "inference" in path else None
        response = client.request(method, path, json=body)
        assert response.status_code == 422
        assert said in response.json()["detail"]
        assert client.get("/models/m").status_code == 200  # nothing was done


class TestBodies:
    @pytest.mark.parametrize(
        ("path", "body", "said"),
        [
            ("/train", "[]", "the body must be an object"),
            ("/train", "5", "the body must be an object, not 5"),
            ("/inference", "null", "the body must be an object, not null"),
            ("/inference", "", "the body is missing; send an object in JSON"),
            ("/train", '{"seed": 1, "n_envs": 2, "seed": 2}', "seed: this name is there more than once; send it once"),
            ("/sweeps", '{"base": {"gamma": 1, "gamma": 1}}', "gamma: this name is there more than once"),
            (
                "/inference/batch",
                '{"model_name": "n", "model_name": "m", "observations": [[0, 0, 0, 0]]}',
                "model_name: this name is there more than once",
            ),
            (
                "/inference/batch",
                '{"model\\u005fname": "n", "model_name": "m", "observations": [[0, 0, 0, 0]]}',
                "model_name: this name is there more than once",
            ),
            (
                "/inference/batch",
                '{"model_name": "m", "observations": [{"a": 1, "a": 2}]}',
                "a: this name is there more than once",
            ),
            (
                "/inference/batch?model_name=n&deterministic=false",
                '{"model_name": "m", "observations": [[0, 0, 0, 0]]}',
                "query.model_name: this is for an array; with JSON, send it in the body; query.deterministic: ",
            ),
            ("/models/m/evaluate", '{"seed": 1, "seed": 1}', "seed: this name is there more than once"),
        ],
    )
    def test_one_that_cannot_be_meant_is_refused_in_words(
        self, client: TestClient, path: str, body: str, said: str
    ) -> None:
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 422
        assert said in response.json()["detail"]

    @pytest.mark.parametrize(
        ("method", "path", "said"),
        [
            ("DELETE", "/models/m", "this path takes no body; send the request without one"),
            ("GET", "/models", "this path takes no body"),
            ("POST", "/training/x/stop", "this path takes no body"),
            ("POST", "/training/x/resume", "this path takes no body"),
            ("GET", "/models/m/video", "send the request without one; its query takes: format, seed, "),
        ],
    )
    def test_one_where_none_is_taken_is_refused(
        self, client: TestClient, content: bytes, method: str, path: str, said: str
    ) -> None:
        response = client.request(method, path, json={"version": 1})
        assert response.status_code == 422
        assert said in response.json()["detail"]
        assert client.get("/models/m").status_code == 200  # nothing was done

    @pytest.mark.parametrize("body", ["", " {}\n"])
    def test_an_empty_one_says_nothing(self, client: TestClient, content: bytes, body: str) -> None:
        headers = {"content-type": "application/json"}
        assert client.request("DELETE", "/models/m", content=body, headers=headers).status_code == 200

    def test_a_query_is_sent_to_the_body_only_where_there_is_one(self, client: TestClient) -> None:
        detail = client.post("/training/x/stop?now=1").json()["detail"]
        assert detail == "query.now: unknown parameter: this path takes none in its query"

    @pytest.mark.parametrize(
        ("method", "path", "content_type"),
        [
            ("POST", "/train", "application/json"),
            ("POST", "/inference", "application/json"),
            ("POST", "/inference/batch", "application/octet-stream"),
            ("PUT", "/models/m/file", "application/zip"),
        ],
    )
    def test_a_compressed_one_is_refused_and_not_read_as_it_is(
        self, client: TestClient, method: str, path: str, content_type: str
    ) -> None:
        headers = {"content-type": content_type, "content-encoding": "gzip"}
        response = client.request(method, path, content=gzip.compress(b"{}"), headers=headers)
        assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")
        assert "without the header Content-Encoding" in response.json()["detail"]
        plain = client.request(method, path, content=b"{", headers=headers | {"content-encoding": "identity"})
        assert plain.status_code in (400, 422)
