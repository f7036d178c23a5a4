"""Logging in and out in a browser, with a form and a cookie."""

import re
from collections.abc import Iterator
from html import escape
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.http.sessions import COOKIE_NAME, Sessions
from service.settings import Settings
from tests.support import make_client

KEY = "a key of 22 characters"
ORIGIN = {"origin": "http://localhost"}
PAGE_ACCEPT = {"accept": "text/html"}

with_key = pytest.mark.parametrize("overrides", [{"api_key": KEY}], ids=["key"])


def log_in(client: TestClient, key: str, **form: str) -> int:
    response = client.post("/login", data={"key": key, **form}, headers=ORIGIN, follow_redirects=False)
    return int(response.status_code)


def make_cookie(token: str) -> dict[str, str]:
    return {"cookie": f"theme=dark; {COOKIE_NAME}={token}"}


@pytest.fixture
def browser(app: FastAPI) -> Iterator[TestClient]:
    """A client that keeps cookies and uses https."""
    with TestClient(app, base_url="https://localhost") as client:
        yield client


@with_key
class TestLoggingIn:
    def test_the_page_is_plain_html_without_scripts(self, client: TestClient) -> None:
        response = client.get("/login")
        assert response.status_code == 200
        assert "<script" not in response.text
        assert '<form method="post" action="/login">' in response.text
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["referrer-policy"] == "same-origin"  # otherwise the form's origin would be null

    def test_the_right_key_opens_every_page(self, client: TestClient) -> None:
        for path in ("/docs", "/redoc", "/openapi.json", "/models"):
            assert client.get(path).status_code == 401, path
        assert log_in(client, KEY) == 303
        for path in ("/docs", "/redoc", "/openapi.json", "/models", "/dashboard"):
            assert client.get(path).status_code == 200, path

    def test_the_cookie_is_kept_from_scripts_and_other_sites_and_does_not_hold_the_key(
        self, client: TestClient
    ) -> None:
        response = client.post("/login", data={"key": KEY}, headers=ORIGIN, follow_redirects=False)
        assert response.headers["location"] == "/dashboard"
        cookie = SimpleCookie(response.headers["set-cookie"])[COOKIE_NAME]
        assert cookie["httponly"]
        assert cookie["samesite"] == "strict"
        assert cookie["max-age"] == "43200"
        assert not cookie["secure"]
        assert KEY not in cookie.value
        assert re.fullmatch(r"\d{10}\.[0-9a-f]{64}", cookie.value)

    def test_over_https_it_stays_there(self, browser: TestClient) -> None:
        headers = {"origin": "https://localhost"}
        response = browser.post("/login", data={"key": KEY}, headers=headers, follow_redirects=False)
        assert SimpleCookie(response.headers["set-cookie"])[COOKIE_NAME]["secure"]

    @pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1], KEY.upper(), "schl\u00fcssel"])
    def test_a_wrong_key_is_told_so_and_gets_no_cookie(self, client: TestClient, key: str) -> None:
        response = client.post("/login", data={"key": key}, headers=ORIGIN)
        assert response.status_code == 403
        assert "not this server's key" in response.text
        assert "set-cookie" not in response.headers
        assert KEY not in response.text

    def test_guessing_ends_after_ten_wrong_keys_but_the_right_one_opens(self, client: TestClient) -> None:
        assert [log_in(client, "wrong") for _ in range(10)] == [403] * 10
        response = client.post("/login", data={"key": "wrong"}, headers=ORIGIN)
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert "set-cookie" not in response.headers
        assert log_in(client, KEY) == 303

    def test_a_form_of_another_site_is_refused(self, client: TestClient) -> None:
        response = client.post("/login", data={"key": KEY}, headers={"origin": "https://evil.example"})
        assert response.status_code == 403
        assert "set-cookie" not in response.headers

    def test_only_a_small_form_is_read(self, client: TestClient) -> None:
        assert client.post("/login", json={"key": KEY}, headers=ORIGIN).status_code == 415
        assert client.post("/login", data={"key": "x" * 5000}, headers=ORIGIN).status_code == 413

    @pytest.mark.parametrize(
        ("wanted", "target"),
        [
            ("/docs", "/docs"),
            ("/dashboard/models/m-1.2", "/dashboard/models/m-1.2"),
            ("/dashboard/models/m@prod", "/dashboard/models/m@prod"),
            ("/dashboard/side-by-side?left=a@1&right=b%20c", "/dashboard/side-by-side?left=a@1&right=b%20c"),
            ("/dashboard?q=" + "x" * 2000, "/dashboard"),
            ('/dashboard?q="><script>', "/dashboard"),
            ("/dashboard?q=\r\nX: y", "/dashboard"),
            ("/docs?url=https://evil.example", "/docs"),
            ("/dashboard@evil.example", "/dashboard"),
            ("//evil.example?/dashboard", "/dashboard"),
            ("//evil.example", "/dashboard"),
            ("https://evil.example/dashboard", "/dashboard"),
            ("/dashboard//evil.example", "/dashboard"),
            ("/dashboard\r\nX: y", "/dashboard"),
            ('/dashboard"><script>', "/dashboard"),
            ("/models", "/dashboard"),
        ],
    )
    def test_it_leads_to_pages_of_this_server_only(self, client: TestClient, wanted: str, target: str) -> None:
        assert f'value="{escape(target)}"' in client.get("/login", params={"next": wanted}).text
        response = client.post("/login", data={"key": KEY, "next": wanted}, headers=ORIGIN, follow_redirects=False)
        assert response.headers["location"] == target

    def test_logging_out_takes_the_cookie_back(self, client: TestClient) -> None:
        log_in(client, KEY)
        response = client.post("/logout", headers=ORIGIN, follow_redirects=False)
        assert response.headers["location"] == "/login"
        assert client.get("/models").status_code == 401


@with_key
class TestSessions:
    def test_a_visitor_of_the_dashboard_is_sent_to_the_login(self, client: TestClient) -> None:
        for path in ("/dashboard", "/dashboard/models/m@prod", "/dashboard/side-by-side?left=a&right=b%20c"):
            response = client.get(path, headers=PAGE_ACCEPT, follow_redirects=False)
            assert response.status_code == 303
            location = response.headers["location"]
            head = client.head(path, headers=PAGE_ACCEPT, follow_redirects=False)
            assert (head.status_code, head.headers["location"]) == (303, location)
            assert location == f"/login?next={quote(path)}"
            assert f'value="{escape(path)}"' in client.get(location).text
        assert client.get("/dashboard/_nicegui/x", follow_redirects=False).status_code == 401

    @pytest.mark.parametrize(
        "token",
        [
            "",
            KEY,
            "9999999999.0000",
            Sessions(KEY.encode(), lambda: 1_000_000.0).make_token(),
            Sessions(b"the key before it was changed").make_token(),
        ],
        ids=["none", "the key", "forged", "expired", "another key's"],
    )
    def test_any_other_cookie_opens_nothing(self, client: TestClient, token: str) -> None:
        assert client.get("/models", headers=make_cookie(token)).status_code == 401
        assert client.delete("/models/x", headers=make_cookie(token) | ORIGIN).status_code == 401

    @pytest.mark.parametrize(
        ("headers", "status_code"),
        [
            ({"origin": "http://localhost"}, 404),
            ({"sec-fetch-site": "same-origin"}, 404),
            ({}, 403),
            ({"sec-fetch-site": "same-site"}, 403),
            ({"origin": "http://localhost:3000"}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
        ],
    )
    def test_with_a_cookie_only_the_servers_own_pages_change_anything(
        self, client: TestClient, headers: dict[str, str], status_code: int
    ) -> None:
        cookie = make_cookie(Sessions(KEY.encode()).make_token())
        assert client.delete("/models/x", headers=cookie | headers).status_code == status_code


class TestWithoutAKey:
    def test_nobody_has_to_log_in(self, client: TestClient) -> None:
        response = client.get("/login", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, "/dashboard")
        assert log_in(client, "anything") == 303

    def test_a_new_key_ends_all_sessions(self, tmp_path: Path) -> None:
        token = Sessions(KEY.encode()).make_token()
        for key, status_code in ((KEY, 200), ("the key that came after it", 401)):
            with make_client(Settings(models_dir=tmp_path, api_key=key)) as client:
                assert client.get("/models", headers=make_cookie(token)).status_code == status_code
