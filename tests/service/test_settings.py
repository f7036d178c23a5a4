"""Settings come from the environment, and unsafe ones are refused."""

import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.schemas.violations import summarize_violations
from service.settings import Settings, UnsafeSettingsError, describe_unknown_variables

KEY = "0123456789abcdef"
CASES: list[tuple[str, str, object]] = [
    ("host", "0.0.0.0", "0.0.0.0"),
    ("port", "8123", 8123),
    ("role", "SERVE", "serve"),
    ("models_dir", "some/folder", Path("some/folder")),
    ("tensorboard_dir", "some/runs", Path("some/runs")),
    ("api_key", KEY, SecretStr(KEY)),
    ("allow_insecure", "1", True),
    ("allowed_hosts", "one.example, two.example,,", ("one.example", "two.example")),
    ("allowed_hosts", "*", ("*",)),
    ("cors_origins", "https://a.example,https://b.example:8443", ("https://a.example", "https://b.example:8443")),
    ("cors_origins", "", ()),
    ("cors_origins", "*", ("*",)),
    ("executor", "process", "process"),
    ("ray_address", "head:6379", "head:6379"),
    ("ray_gpus_per_job", "0.25", 0.25),
    ("ray_wait_seconds", "30", 30.0),
    ("ray_lease_seconds", "90", 90.0),
    ("stall_seconds", "2.5", 2.5),
    ("max_running_jobs", "3", 3),
    ("max_queued_jobs", "0", 0),
    ("max_kept_jobs", "5", 5),
    ("max_kept_days", "1.5", 1.5),
    ("max_body_bytes", "2048", 2048),
    ("max_batch_bytes", "4096", 4096),
    ("max_upload_bytes", "8192", 8192),
    ("env_modules", "my_envs, more.envs", ("my_envs", "more.envs")),
    ("max_cached_models", "7", 7),
    ("max_cached_bytes", "1000000", 1_000_000),
    ("min_free_bytes", "0", 0),
    ("max_models", "9", 9),
    ("max_models_bytes", "4096", 4096),
    ("max_model_versions", "3", 3),
    ("client_limits", "OFF", "off"),
    ("client_requests_per_second", "5", 5),
    ("client_jobs_per_minute", "6", 6),
    ("client_active_jobs", "2", 2),
    ("client_job_timesteps", "5000", 5000),
    ("client_job_seconds", "60", 60.0),
    ("client_upload_bytes_per_hour", "65536", 65_536),
    ("preload", "1", True),
    ("shutdown_grace_seconds", "0.5", 0.5),
    ("task_seconds", "7.5", 7.5),
    ("log_format", "JSON", "json"),
    ("log_level", "WARNING", "warning"),
    ("access_log", "true", True),
]
# Of read-only replicas alone.
REPLICA_CASES: list[tuple[str, str, object]] = [
    ("replicas", "4", 4),
    ("metrics_port", "9100", 9100),
    ("trainer_url", "https://train.example:8443", "https://train.example:8443"),
    ("models_url", "s3://bucket/models", "s3://bucket/models"),
]


def test_by_default_only_this_machine_is_served() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.models_dir) == ("127.0.0.1", 8000, Path("models"))
    assert settings.api_key is None
    assert settings.allowed_hosts == ("localhost", "127.0.0.1", "::1")
    assert settings.cors_origins == ()
    assert settings.max_body_bytes == 2**20
    assert (settings.executor, settings.stall_seconds) == ("auto", 60.0)
    assert settings.max_batch_bytes == 8 * 2**20
    assert settings.max_running_jobs in (1, 2)
    settings.check_exposure()


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_every_setting_is_read_from_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: object
) -> None:
    monkeypatch.setenv(f"GRPO_{name.upper()}", text)
    assert getattr(Settings(), name) == expected


def test_no_setting_is_without_a_case() -> None:
    others = {"api_key_file"}  # which has tests of its own below
    cases = {name for name, *_ in (*CASES, *REPLICA_CASES)}
    assert cases | others == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "text", "expected"), REPLICA_CASES)
def test_what_only_replicas_have_needs_their_role(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: object
) -> None:
    monkeypatch.setenv(f"GRPO_{name.upper()}", text)
    with pytest.raises(ValidationError, match=f"{name}: only replicas have this; add --role serve"):
        Settings()
    assert getattr(Settings(role="serve"), name) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"replicas": 2, "port": 0}, "2 replicas share one port, and port 0"),
        ({"replicas": 2, "port": 9001, "metrics_port": 9000}, "port 9001 is among them"),
        ({"port": 9000, "metrics_port": 9000}, "port 9000 is among them"),
        ({"replicas": 3, "metrics_port": 65_534}, "has no 3 ports from there"),
    ],
)
def test_ports_that_replicas_cannot_share_are_refused(given: dict[str, int], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Settings.model_validate({"role": "serve", **given})


def test_ports_beside_each_other_are_fine() -> None:
    assert Settings(role="serve", replicas=2, port=9002, metrics_port=9000).metrics_port == 9000
    assert Settings(role="serve", replicas=2, port=8999, metrics_port=65_534).metrics_port == 65_534


def test_a_value_given_in_the_call_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_PORT", "8123")
    assert Settings(port=9000).port == 9000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "eighty"),
        ("executor", "coroutine"),
        ("ray_address", "http://head:6379"),
        ("ray_gpus_per_job", "0"),
        ("ray_wait_seconds", "0"),
        ("ray_lease_seconds", "59"),
        ("stall_seconds", "0"),
        ("max_running_jobs", "0"),
        ("max_queued_jobs", "-1"),
        ("max_kept_jobs", "0"),
        ("max_kept_days", "0"),
        ("max_body_bytes", "10"),
        ("max_batch_bytes", "10"),
        ("max_cached_models", "0"),
        ("max_model_versions", "0"),
        ("max_cached_bytes", "0"),
        ("min_free_bytes", "-1"),
        ("shutdown_grace_seconds", "0"),
        ("role", "train"),
        ("replicas", "0"),
        ("metrics_port", "0"),
        ("trainer_url", "train.example"),
        ("models_url", "/models"),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("api_key", "0123456789abcde"),
        ("api_key", ""),
        ("api_key", "a key with\nline breaks"),
        ("api_key", "a key with \x01 control characters"),
        ("allowed_hosts", ""),
        ("allowed_hosts", "https://example.org"),
        ("allowed_hosts", "localhost,example.org:8000"),
        ("allowed_hosts", "127.0.0.1:8000"),
        ("allowed_hosts", "*.example.org"),
        ("cors_origins", "example.org"),
        ("cors_origins", "https://example.org/app"),
        ("cors_origins", "https://*.example.org"),
        ("models_dir", ""),
        ("tensorboard_dir", " "),
        ("models_dir", "~no-such-user/models"),
    ],
)
def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"GRPO_{name.upper()}", text)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    assert [error["loc"] for error in refusal.value.errors()] == [(name,)]


# All that take a part of a number.
FLOATS = sorted(name for name, field in Settings.model_fields.items() if field.annotation is float)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_is_refused_with_the_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"GRPO_{name.upper()}", text)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    expected = f"{name}: must be a finite number, such as 60 or 2.5, not {text}"
    assert summarize_violations(refusal.value.errors())[0] == expected


@pytest.mark.parametrize("name", [name for name in FLOATS if name.endswith("_seconds")])
def test_a_time_is_a_day_at_most_so_that_a_lock_can_wait_for_it(name: str) -> None:
    assert getattr(Settings.model_validate({name: 86_400}), name) == 86_400 < threading.TIMEOUT_MAX
    with pytest.raises(ValidationError, match="less than or equal to 86400"):
        Settings.model_validate({name: 86_401})


@pytest.mark.parametrize(
    ("name", "text", "detail"),
    [
        ("stall_seconds", "60s", "must be a number in plain digits, such as 60 or 2.5"),
        ("trainer_url", "train.example:8000", "must be written as http://HOST:PORT or https://HOST"),
        ("models_url", "/models", "must be written as SCHEME://PATH, such as s3://BUCKET/FOLDER"),
        ("ray_address", "http://head:6379", "must be written as HOST:PORT, such as head:6379"),
        ("ray_address", "head:6379\n", "must be written as HOST:PORT, such as head:6379"),
    ],
)
def test_how_a_setting_is_written_is_said_in_words(name: str, text: str, detail: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({"role": "serve", name: text})
    assert summarize_violations(refusal.value.errors())[0] == f"{name}: {detail}"


def test_processes_are_refused_where_they_cannot_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.fork")
    with pytest.raises(ValidationError, match="use 'thread'"):
        Settings(executor="process")
    assert Settings().executor == "auto"


def test_a_cluster_is_refused_where_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install -r requirements-ray\.txt"):
        Settings(executor="ray")


def test_the_key_is_not_shown_with_the_settings() -> None:
    assert KEY not in repr(Settings(api_key=SecretStr(KEY)))


def test_settings_do_not_change_while_the_service_runs() -> None:
    with pytest.raises(ValidationError):
        setattr(Settings(), "port", 1)  # noqa: B010  # the type checker refuses it as well


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *((address, address) for address in ("127.0.0.1", "127.0.0.5", "::1", "localhost")),
        (" 127.0.0.1 ", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("localhost.", "localhost"),
    ],
)
def test_this_machine_alone_may_be_served_without_a_key(host: str, address: str) -> None:
    settings = Settings(host=host)
    settings.check_exposure()
    assert (settings.host, settings.limits_clients) == (address, False)


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have names stand for two addresses, of which one is this machine's, and ``nowhere`` for none."""
    look_up = socket.getaddrinfo

    def resolve(host: str, port: None, *, type: socket.SocketKind, flags: int) -> Any:
        if flags & socket.AI_NUMERICHOST or not host[-1:].isalpha():
            return look_up(host, port, type=type, flags=flags)
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.7")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize(
    ("host", "shown"),
    [
        *((address, address) for address in ("0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org")),
        ("0", "0.0.0.0"),
        (" 0x0 ", "0.0.0.0"),
        ("[::]", "::"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("3232235781", "192.168.1.5"),
    ],
)
def test_serving_others_without_a_key_is_refused_with_the_remedy(host: str, shown: str) -> None:
    settings = Settings(host=host)
    with pytest.raises(UnsafeSettingsError, match=f"refusing to serve {re.escape(shown)} .* it is not .* GRPO_API_KEY"):
        settings.check_exposure()
    assert settings.limits_clients


@pytest.mark.usefixtures("no_names")
def test_a_name_that_means_nothing_yet_is_not_taken_for_this_machine() -> None:
    with pytest.raises(UnsafeSettingsError, match=r"nowhere .* does not resolve yet"):
        Settings(host="nowhere").check_exposure()


@pytest.mark.parametrize("host", ["", " ", "http://localhost", "127.0.0.1:8000", "[::1]:8000", "a b"])
def test_what_is_no_host_is_refused_with_the_remedy(host: str) -> None:
    with pytest.raises(ValidationError, match="neither a name nor an address; write it without scheme and port"):
        Settings(host=host)


def test_a_key_or_an_explicit_wish_allows_to_serve_others() -> None:
    Settings(host="0.0.0.0", api_key=SecretStr(KEY)).check_exposure()
    Settings(host="0.0.0.0", allow_insecure=True).check_exposure()


def test_a_key_read_from_a_file_and_an_origin_copied_from_a_browser_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_API_KEY", "a key of 22 characters\n")
    monkeypatch.setenv("GRPO_CORS_ORIGINS", "https://a.example/, https://b.example")
    settings = Settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "a key of 22 characters"
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_origins_are_compared_as_browsers_send_them() -> None:
    written = "HTTPS://App.Example:443,http://a.example:80/,http://a.example:443,https://[2001:DB8::1]:8443,null"
    expected = "https://app.example", "http://a.example", "http://a.example:443", "https://[2001:db8::1]:8443", "null"
    assert Settings.model_validate({"cors_origins": written}).cors_origins == expected


def test_hosts_may_be_addresses() -> None:
    assert Settings(allowed_hosts=("::1", "[2001:db8::1]", "192.0.2.1", "a_b.example")).allowed_hosts


def test_the_home_folder_is_written_as_in_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "api.key").write_text(KEY)
    written = {"models_dir": "~/models", "tensorboard_dir": "~/runs", "api_key_file": "~/api.key"}
    settings = Settings.model_validate(written)
    assert (settings.models_dir, settings.tensorboard_dir) == (tmp_path / "models", tmp_path / "runs")
    assert settings.api_key == SecretStr(KEY)


def test_variables_that_are_no_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRPO_MAX_RUNING_JOBS", "GRPO_ZZZ", "grpo_port", "GRPO_URL"):
        monkeypatch.setenv(name, "1")
    assert describe_unknown_variables() == [
        "GRPO_MAX_RUNING_JOBS is no setting; did you mean GRPO_MAX_RUNNING_JOBS?",
        "GRPO_ZZZ is no setting; it is ignored",
    ]


def test_a_key_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "api.key").write_text(f"{KEY}\n")
    monkeypatch.setenv("GRPO_API_KEY_FILE", str(tmp_path / "api.key"))
    settings = Settings(host="0.0.0.0")
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    settings.check_exposure()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"short", "16 characters"),
        (b"", "16"),
        (b"a" * 4097, "4,096 bytes"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "api.key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValidationError, match=reason) as refusal:
        Settings(api_key_file=file)
    assert "short" not in str([error["msg"] for error in refusal.value.errors(include_input=False)])


def test_a_pipe_is_no_file_with_a_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "api.key")
    with pytest.raises(ValidationError, match=r"not a regular file\); name a regular file, or set GRPO_API_KEY"):
        Settings(api_key_file=tmp_path / "api.key")


def test_a_key_and_a_file_at_once_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "api.key").write_text(KEY)
    monkeypatch.setenv("GRPO_API_KEY", KEY)
    with pytest.raises(ValidationError, match="exclude each other"):
        Settings(api_key_file=tmp_path / "api.key")
