"""The checks before the routes: hosts, origins, the key, and the size and type of bodies."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import service.http.limits.bodies
from tests.support import PROBLEM_FIELDS, serve

KEY = "a key of 22 characters"
EVIL = "https://evil.example"
ROUTES = [
    ("GET", "/"),
    ("POST", "/train"),
    ("GET", "/training/x/status"),
    ("GET", "/training/jobs"),
    ("POST", "/training/x/stop"),
    ("POST", "/inference"),
    ("POST", "/inference/batch"),
    ("GET", "/models"),
    ("DELETE", "/models/x"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/static-offline-docs/swagger-ui.css"),
    ("GET", "/nowhere"),
]
UNSAFE_ROUTES = [route for route in ROUTES if route[0] in ("POST", "DELETE")]
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

with_key = pytest.mark.parametrize("overrides", [{"api_key": KEY}], ids=["key"])


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    """The port of the service on loopback, for requests that no client would send."""
    with serve(app) as port:
        yield port


def send_raw(port: int, request: bytes) -> tuple[int, bytes]:
    """Send bytes unchanged; return the status code and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        ["localhost", "LOCALHOST", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"],
    )
    def test_names_of_this_machine_are_accepted_with_any_port(self, client: TestClient, host: str) -> None:
        assert client.get("/health", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "localhost@evil.example",
            "evil.example#localhost",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "0.0.0.0",
            "192.168.1.5",
            "[::2]",
            "[::1]evil.example",
            "::1",
            "localhost:",
            "localhost:port",
            "localhost:123456",
            "localhost,evil.example",
            " ",
            "",
            "l\u00f6calhost",
        ],
    )
    @pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("DELETE", "/models/x")])
    def test_any_other_name_is_refused(self, client: TestClient, method: str, path: str, host: str) -> None:
        response = client.request(method, path, headers={b"host": host.encode("latin-1")})
        assert response.status_code == 400
        assert response.json().keys() == PROBLEM_FIELDS
        assert "evil" not in response.text

    def test_no_name_and_two_names_are_refused(self, port: int) -> None:
        status_code, answer = send_raw(port, b"GET /health HTTP/1.0\r\n\r\n")
        assert (status_code, b"the Host header is missing" in answer) == (400, True)
        two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert send_raw(port, two)[0] == 400
        one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert send_raw(port, one)[0] == 200

    @pytest.mark.parametrize("overrides", [{"allowed_hosts": "grpo.example, [fd00::1]"}])
    @pytest.mark.parametrize(
        ("host", "status_code"),
        [("grpo.example:443", 200), ("[FD00::1]:80", 200), ("localhost", 400), ("other.grpo.example", 400)],
    )
    def test_the_names_can_be_chosen(self, client: TestClient, host: str, status_code: int) -> None:
        assert client.get("/health", headers={"host": host}).status_code == status_code

    @pytest.mark.parametrize("overrides", [{"allowed_hosts": "*"}])
    def test_a_star_takes_any_name(self, client: TestClient) -> None:
        assert client.get("/health", headers={"host": "anything.example"}).status_code == 200


class TestOrigins:
    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost",
            "http://localhost:3000",
            "https://localhost:3000",
            "http://127.0.0.1:8888",
            "http://[::1]:5173",
        ],
    )
    def test_pages_of_this_machine_may_call_and_read(self, client: TestClient, origin: str) -> None:
        for method, path in (("GET", "/health"), ("DELETE", "/models/x")):
            response = client.request(method, path, headers={"origin": origin})
            assert response.status_code in (200, 404)
            assert response.headers["access-control-allow-origin"] == origin
            exposed = set(response.headers["access-control-expose-headers"].split(", "))
            assert {"x-request-id", "retry-after", "etag", "x-episode-reward"} <= exposed
            assert "access-control-allow-credentials" not in response.headers

    @pytest.mark.parametrize(
        "origin",
        [
            EVIL,
            "null",
            "",
            "http://localhost.evil.example",
            "http://evil.example/localhost",
            "http://127.0.0.1.evil.example",
            "http://localhost:3000.evil.example",
            "http://localhost@evil.example",
            "file://",
            "http://192.168.1.5",
            "https://localhost\u00e9",
        ],
    )
    def test_pages_of_others_may_not_change_anything(self, client: TestClient, origin: str) -> None:
        for method, path in UNSAFE_ROUTES:
            response = client.request(method, path, headers={b"origin": origin.encode("latin-1")})
            assert response.status_code == 403, path
            assert response.json().keys() == PROBLEM_FIELDS
            assert "access-control-allow-origin" not in response.headers

    def test_pages_of_others_may_not_read_either(self, client: TestClient) -> None:
        response = client.get("/models", headers={"origin": EVIL})
        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-credentials" not in response.headers

    @pytest.mark.parametrize(("method", "path"), UNSAFE_ROUTES)
    def test_a_browser_that_names_a_foreign_site_is_refused(self, client: TestClient, method: str, path: str) -> None:
        headers = {"sec-fetch-site": "cross-site"}
        assert client.request(method, path, headers=headers).status_code == 403

    @pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
    def test_a_browser_on_the_service_itself_is_not(self, client: TestClient, site: str) -> None:
        assert client.delete("/models/x", headers={"sec-fetch-site": site}).status_code == 404

    @pytest.mark.parametrize("overrides", [{"allowed_hosts": "grpo.example"}])
    def test_the_services_own_pages_may_call_under_any_name_of_it(self, client: TestClient) -> None:
        headers = {"host": "grpo.example:8443", "origin": "https://grpo.example:8443"}
        assert client.delete("/models/x", headers=headers).status_code == 404

    @pytest.mark.parametrize("overrides", [{"cors_origins": "https://page.example, https://b.example"}])
    def test_origins_can_be_allowed(self, client: TestClient) -> None:
        allowed = client.delete("/models/x", headers={"origin": "https://page.example"})
        assert allowed.status_code == 404
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert client.delete("/models/x", headers={"origin": "https://page.example:444"}).status_code == 403

    @pytest.mark.parametrize("overrides", [{"cors_origins": "*"}])
    def test_a_star_lets_pages_read_without_credentials_and_change_nothing(self, client: TestClient) -> None:
        response = client.get("/models", headers={"origin": EVIL, "cookie": "a=b"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
        assert client.delete("/models/x", headers={"origin": EVIL}).status_code == 403


class TestPreflight:
    def ask(self, client: TestClient, origin: str, method: str, headers: str = "content-type") -> Any:
        return client.options(
            "/models/x",
            headers={
                "origin": origin,
                "access-control-request-method": method,
                "access-control-request-headers": headers,
            },
        )

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_a_page_of_this_machine_is_told_what_it_may_send(self, client: TestClient, method: str) -> None:
        response = self.ask(
            client, "http://localhost:3000", method, "content-type, authorization, x-api-key, x-request-id"
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert response.headers["access-control-max-age"] == "600"
        assert "access-control-allow-credentials" not in response.headers

    def test_it_may_send_every_method_that_there_is(self, client: TestClient) -> None:
        operations = client.get("/openapi.json").json()["paths"].values()
        methods = {method.upper() for operation in operations for method in operation} - {"PARAMETERS"}
        assert methods >= {"GET", "PATCH"}
        for method in methods:
            assert self.ask(client, "http://localhost:3000", method).status_code == 200, method

    @pytest.mark.parametrize(
        ("origin", "method", "headers"),
        [
            (EVIL, "DELETE", "content-type"),
            ("null", "POST", "content-type"),
            ("http://localhost:3000", "TRACE", "content-type"),
            ("http://localhost:3000", "POST", "x-anything"),
        ],
    )
    def test_anything_else_is_refused(self, client: TestClient, origin: str, method: str, headers: str) -> None:
        response = self.ask(client, origin, method, headers)
        assert response.status_code == 400
        if origin == EVIL:
            assert "access-control-allow-origin" not in response.headers

    @with_key
    def test_it_needs_no_key_because_browsers_send_none(self, client: TestClient) -> None:
        assert self.ask(client, "http://localhost:3000", "POST").status_code == 200


class TestTheKey:
    @with_key
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": "Bearer"},
            {"authorization": "Bearer "},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"x-api-key": ""},
            {"x-api-key": KEY.upper()},
            {"x-api-key": "schl\u00fcssel".encode("latin-1")},
            {"x-api-key": b"\xff\xfe"},
            {"cookie": f"api_key={KEY}"},
        ],
        ids=lambda headers: str(headers)[:24],
    )
    def test_without_the_right_key_every_route_but_health_is_closed(
        self, client: TestClient, headers: dict[str, Any]
    ) -> None:
        for method, path in ROUTES:
            response = client.request(method, path, headers=headers)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json().keys() == PROBLEM_FIELDS
            assert KEY not in response.text
            if not headers.keys() & {"x-api-key", "authorization"}:
                assert response.json()["detail"].startswith("this server needs an API key; send it as")
        if headers.get("x-api-key"):
            assert response.json()["detail"].startswith("the API key that was sent is not this server's; send it as")

    @with_key
    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer {KEY}"},
            {"authorization": f"BEARER  {KEY} "},
            {"x-api-key": KEY},
            {"X-API-Key": KEY},
        ],
        ids=str,
    )
    def test_with_it_every_route_is_open(self, client: TestClient, headers: dict[str, str]) -> None:
        for method, path in ROUTES:
            body = {"total_timesteps": 1} if path == "/train" else None
            assert client.request(method, path, headers=headers, json=body).status_code in (200, 404, 422), path

    @with_key
    def test_health_alone_needs_none(self, client: TestClient) -> None:
        for path in ("/health", "/health/live", "/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/health/", "//health", "/health/../models", "/models?/health", "/Health"):
            assert client.get(path).status_code == 401

    @with_key
    def test_only_who_has_it_learns_how_many_jobs_and_models_there_are(self, client: TestClient) -> None:
        assert client.get("/health").json().keys() == {"status", "timestamp"}
        assert client.get("/health", headers={"x-api-key": KEY}).json()["active_jobs"] == 0

    @with_key
    def test_a_wrong_key_is_noticed_before_the_body_is_read(self, port: int) -> None:
        request = (
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        assert send_raw(port, request)[0] == 401  # though the body never comes

    @pytest.mark.parametrize("overrides", [{"api_key": "schl\u00fcssel-schl\u00fcssel"}])
    def test_a_key_may_hold_any_letters(self, client: TestClient) -> None:
        headers = {b"x-api-key": "schl\u00fcssel-schl\u00fcssel".encode()}
        assert client.get("/models", headers=headers).status_code == 200


class TestBodies:
    LIMIT = 2**20

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"])
    @pytest.mark.parametrize("path", ["/train", "/inference", "/training/x/stop"])
    def test_a_body_that_does_not_claim_to_be_json_is_refused(
        self, client: TestClient, path: str, content_type: str
    ) -> None:
        response = client.post(path, content=b"{}", headers={"content-type": content_type})
        assert response.status_code == 415
        assert response.json().keys() == PROBLEM_FIELDS

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
    def test_json_is_accepted_however_it_is_written(self, client: TestClient, content_type: str) -> None:
        body = b'{"total_timesteps": 1}'
        assert client.post("/train", content=body, headers={"content-type": content_type}).status_code == 200

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            ("/train", {"total_timesteps": 0}),
            ("/inference", {"model_name": "absent", "observation": [0.0]}),
            ("/inference/batch", {"model_name": "absent", "observations": [[0.0]]}),
        ],
    )
    def test_json_is_read_as_utf_8_wherever_it_is_sent(
        self, client: TestClient, path: str, fields: dict[str, Any]
    ) -> None:
        def send(encoding: str, marks: str = "") -> Any:
            headers = {"content-type": "application/json"}
            return client.post(path, content=(marks + json.dumps(fields)).encode(encoding), headers=headers)

        plain = send("utf-8")
        for n_marks in (1, 2, 3):
            marked = send("utf-8", "\ufeff" * n_marks)
            assert (marked.status_code, marked.json()["detail"]) == (plain.status_code, plain.json()["detail"])
        for encoding in ("utf-16", "utf-16-le", "utf-32"):
            answer = send(encoding)
            assert answer.status_code == 422
            assert "not UTF-8" in answer.json()["detail"]

    def test_a_body_of_the_largest_size_is_read_and_one_byte_more_is_not(self, client: TestClient) -> None:
        headers = {"content-type": "application/json"}
        largest = b"{" + b" " * (self.LIMIT - 2) + b"}"
        assert client.post("/inference", content=largest, headers=headers).status_code == 422
        response = client.post("/inference", content=largest + b" ", headers=headers)
        assert response.status_code == 413
        assert response.json()["detail"] == "the body is larger than 1048576 bytes."
        assert response.headers["connection"] == "close"

    @pytest.mark.parametrize("overrides", [{"max_body_bytes": 1024}])
    def test_the_largest_size_can_be_chosen(self, client: TestClient) -> None:
        assert client.post("/train", json={"model_name": "x" * 1024}).status_code == 413

    def test_a_length_alone_is_enough_to_refuse(self, port: int) -> None:
        request = (
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1099511627776\r\n\r\n"
        )
        status_code, body = send_raw(port, request)
        assert (status_code, json.loads(body)["detail"]) == (413, "the body is larger than 1048576 bytes.")

    @pytest.mark.parametrize("chunk_bytes", [65_536, 1024])
    def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(self, port: int, chunk_bytes: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        chunks = (b" " * chunk_bytes for _ in range(self.LIMIT // chunk_bytes + 1))
        connection.request("POST", "/train", chunks, headers, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
        connection.close()

    def test_a_body_without_a_length_is_read_whole(self, port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        body = b'{"model_name": "none", "observation": [0.0]}'
        connection.request("POST", "/inference", (bytes([byte]) for byte in body), headers, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, b"no model 'none'" in response.read()) == (404, True)
        connection.close()

    @with_key
    @pytest.mark.parametrize(
        "request_line", ["OPTIONS /x", "OPTIONS /train", "GET /health", "GET /health/live", "POST /logout"]
    )
    @pytest.mark.parametrize("announced", ["Content-Length: 99", "Transfer-Encoding: chunked"])
    def test_what_needs_no_key_is_refused_before_its_body_is_read(
        self, port: int, request_line: str, announced: str
    ) -> None:
        head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{announced}\r\n\r\n"
        status_code, body = send_raw(port, head.encode())  # though the body never comes
        detail = f"'{request_line}' was sent with a body and takes none; send it without one."
        assert (status_code, json.loads(body)["detail"]) == (413, detail)

    @with_key
    def test_it_is_answered_without_one(self, client: TestClient) -> None:
        assert client.get("/health", headers={"content-length": "0", "content-type": "x/y"}).status_code == 200
        assert client.options("/train").status_code == 405
        assert client.post("/logout", follow_redirects=False).status_code == 303

    def test_a_chunked_body_needs_its_type_too(self, client: TestClient) -> None:
        assert client.post("/train", content=iter([b"{}"])).status_code == 415

    @pytest.mark.parametrize("length", [b"-1", b"x", b"1e3", b"\xb2", b"5, 5", b"0" * 5000 + b"2"])
    def test_a_length_that_is_no_number_is_never_a_server_error(self, port: int, length: bytes) -> None:
        request = (
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: " + length + b"\r\n\r\n{}"
        )
        assert send_raw(port, request)[0] < 500

    def test_a_body_that_does_not_arrive_is_given_up(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        # The real deadline would make a slow test.
        monkeypatch.setattr(service.http.limits.bodies, "_BODY_DEADLINE_SECONDS", 0.2)
        request = (
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        status_code, body = send_raw(port, request)
        assert status_code == 408
        assert json.loads(body)["type"] == "urn:grpo:problem:body-timeout"

    def test_every_body_has_its_own_patience(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.limits.bodies, "_BODY_DEADLINE_SECONDS", 0.3)
        head = (
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        # The second begins while the first one's timer is set, a third after the server was idle.
        with ThreadPoolExecutor(2) as pool:
            assert [code for code, _ in pool.map(lambda _: send_raw(port, head), range(2))] == [408, 408]
        assert send_raw(port, head)[0] == 408
        assert send_raw(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200


@pytest.mark.parametrize("path", ["/train%0a", "/models/m/file%0A", "/inference%0a", "/%00", "/train%e2%80%a8"])
@pytest.mark.parametrize("overrides", [{"role": "all"}, {"role": "serve"}], ids=str)
def test_no_path_has_a_character_that_cannot_be_printed(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "PUT"):
        response = client.request(method, path)
        assert (response.status_code, response.json()["type"]) == (404, "urn:grpo:problem:no-such-path")
        assert ascii(unquote(path)) in response.json()["detail"]


class TestHeadersOfAnswers:
    @pytest.mark.parametrize(
        ("method", "path", "headers", "status_code"),
        [
            ("GET", "/health", {}, 200),
            ("GET", "/models", {"origin": "http://localhost:3000"}, 200),
            ("GET", "/nowhere", {}, 404),
            ("PUT", "/train", {}, 405),
            ("POST", "/inference", {}, 422),
            ("GET", "/health", {"host": "evil.example"}, 400),
            ("DELETE", "/models/x", {"origin": EVIL}, 403),
            ("POST", "/train", {"content-type": "text/plain", "content-length": "2"}, 415),
            ("POST", "/train", {"content-type": "application/json", "content-length": "9999999"}, 413),
            ("GET", "/bug", {}, 500),
            ("OPTIONS", "/train", {"origin": "http://localhost", "access-control-request-method": "POST"}, 200),
            ("OPTIONS", "/train", {"origin": EVIL, "access-control-request-method": "POST"}, 400),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_every_answer_carries_the_security_headers(
        self, app: FastAPI, client: TestClient, method: str, path: str, headers: dict[str, str], status_code: int
    ) -> None:
        app.add_api_route("/bug", lambda: 1 / 0)
        response = client.request(method, path, headers=headers)
        assert response.status_code == status_code
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"

    def test_a_page_may_read_that_there_was_a_bug(self, app: FastAPI, client: TestClient) -> None:
        app.add_api_route("/bug", lambda: 1 / 0)
        response = client.get("/bug", headers={"origin": "http://localhost:3000"})
        assert response.status_code == 500
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    def test_documentation_may_run_its_own_scripts_and_load_nothing_from_elsewhere(
        self, client: TestClient, path: str
    ) -> None:
        response = client.get(path)
        policy = dict(part.split(maxsplit=1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert not [source for sources in policy.values() for source in sources.split() if "." in source]
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS


@pytest.mark.parametrize("sent", [b'{"model_name":"ghost","total_timesteps":64}', b""])
def test_a_request_cut_off_in_its_body_is_not_acted_on(app: FastAPI, port: int, sent: bytes) -> None:
    head = b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + sent)
    # By the time this is answered, the server has seen the other connection end.
    assert send_raw(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[0] == 200
    assert app.state.service.registry.list_jobs() == []
