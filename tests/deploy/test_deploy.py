"""The deployment is complete, stays hardened, and asks for metrics that exist."""

import ast
import asyncio
import configparser
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from benchmarks.lib.server import hold_port
from tests.models import make_model
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVERS = ["grpo", "grpo-cuda"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
# Prometheus makes this one itself.
OTHERS = {"up"}
METRIC = re.compile(r"\b(up|(?:grpo|process)_[a-z_]+)\b")


def list_copies() -> list[str]:
    """List the files and folders that the image copies."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def list_imported_modules(start: str) -> set[str]:
    """List the modules at the repository's top that a module imports, at once, later, or through others."""
    open_files, seen = [ROOT / f"{start}.py"], {start}
    while open_files:
        for node in ast.walk(ast.parse(open_files.pop().read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - seen:
                files = [*ROOT.glob(f"{name}.py"), *(ROOT / name).glob("**/*.py")]
                seen |= {name} if files else set()
                open_files += files
    return seen


class TestImage:
    def test_it_holds_every_module_that_the_server_imports(self) -> None:
        copied = {Path(source).stem for source in list_copies()}
        imported = list_imported_modules("run_api")
        assert imported >= {"run_api", "api", "service", "grpo", "grpo_core"}
        assert imported <= copied

    def test_docker_is_sent_all_that_is_copied_and_nothing_else(self) -> None:
        rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        assert rules[0] == "*"
        kept = {rule[1:] for rule in rules if rule.startswith("!")}
        assert kept == set(list_copies())
        assert all((ROOT / path).exists() for path in kept)
        for secret in ("deploy/api.key", ".git/config", "models/m.zip", ".env"):
            assert not any(fnmatch.fnmatch(secret, f"{path}*") for path in kept)

    def test_it_runs_as_nobody_in_particular_and_keeps_torch_pinned(self) -> None:
        assert re.findall(r"^USER (.*)$", DOCKERFILE, flags=re.MULTILINE) == ["10001:10001"]
        assert re.search(r"^torch==2\.13\.0$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
        assert len(re.findall(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)) == 2
        assert {"VARIANT", "TORCH_INDEX_URL", "EXTRA_PACKAGES"} <= set(
            re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE)
        )
        assert "curl" not in DOCKERFILE

    @pytest.fixture
    def port(self) -> Iterator[int]:
        with hold_port() as port:
            yield port

    def run_healthcheck(self, folder: Path, port: int) -> int:
        environment = {**os.environ, "GRPO_PORT": str(port)}
        command = [sys.executable, "deploy/healthcheck.py"]
        return subprocess.run(command, cwd=folder, env=environment).returncode

    def test_its_files_are_enough_to_serve_and_its_health_check_notices(self, tmp_path: Path, port: int) -> None:
        for source in list_copies():
            target = tmp_path / "app" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, target)
        (tmp_path / "api.key").write_text("a key of 22 characters\n")
        (tmp_path / "models").mkdir()
        make_model("CartPole-v1").save(tmp_path / "models" / "m.zip")
        settings = {
            "GRPO_PORT": str(port),
            "GRPO_API_KEY_FILE": str(tmp_path / "api.key"),
            "GRPO_MODELS_DIR": str(tmp_path / "models"),
            "GRPO_ALLOWED_HOSTS": "server",
        }
        assert self.run_healthcheck(tmp_path / "app", port) == 1
        server = subprocess.Popen(
            [sys.executable, "run_api.py"], cwd=tmp_path / "app", env={**os.environ, **settings}, stderr=subprocess.PIPE
        )
        try:
            wait_until(lambda: server.poll() is not None or self.run_healthcheck(tmp_path / "app", port) == 0)
            assert server.poll() is None
            server.terminate()
            assert server.wait() == 0
        finally:
            server.kill()
            server.communicate()
        assert self.run_healthcheck(tmp_path / "app", port) == 1


class TestCompose:
    @pytest.mark.parametrize("name", COMPOSE["services"])
    def test_every_service_is_hardened_and_published_on_this_machine_alone(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] <= 512
        assert service["mem_limit"]
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
        assert service["user"].split(":")[0] not in ("0", "root")
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all("noexec" in mount for mount in service["tmpfs"])

    @pytest.mark.parametrize("name", SERVERS)
    def test_a_server_has_its_key_from_a_secret_and_its_models_in_a_volume(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert service["secrets"] == ["api_key"]
        assert service["environment"]["GRPO_API_KEY_FILE"] == "/run/secrets/api_key"
        assert service["volumes"] == ["models:/models"]
        assert "VOLUME /models" in DOCKERFILE
        assert not {key for key in service["environment"] if key == "GRPO_API_KEY"}

    @pytest.mark.parametrize("name", SERVERS)
    def test_the_proxy_on_this_machine_says_who_asks_and_that_it_was_over_https(self, name: str) -> None:
        seen: list[Any] = []

        async def remember(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope["scheme"], scope["client"][0]))

        trusted = COMPOSE["services"][name]["environment"]["FORWARDED_ALLOW_IPS"]
        (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
        # A visitor may send the first address; the last one is what the proxy has seen.
        headers = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-for", b"9.9.9.9, 192.168.1.50")]
        scope: Any = {"type": "http", "scheme": "http", "client": (network["gateway"], 5), "headers": headers}
        app: Any = ProxyHeadersMiddleware(remember, trusted_hosts=trusted)
        asyncio.run(app(scope, None, None))
        assert seen == [("https", "192.168.1.50")]

    def test_the_gpu_and_the_monitoring_are_only_started_when_asked_for(self) -> None:
        profiles = {name: service.get("profiles") for name, service in COMPOSE["services"].items()}
        assert profiles == {
            "grpo": None,
            "grpo-cuda": ["cuda"],
            "prometheus": ["monitoring"],
            "grafana": ["monitoring"],
        }
        devices = COMPOSE["services"]["grpo-cuda"]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["capabilities"] == ["gpu"]

    def test_every_file_that_is_mounted_is_there_and_no_secret_is_kept_in_git(self) -> None:
        mounts = [volume for service in COMPOSE["services"].values() for volume in service["volumes"]]
        files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
        assert len(files) == 3
        assert all((DEPLOY / file).exists() for file in files)
        ignored = (ROOT / ".gitignore").read_text().splitlines()
        assert {f"deploy/{Path(secret['file']).name}" for secret in COMPOSE["secrets"].values()} <= set(ignored)

    def test_prometheus_asks_a_server_by_a_name_that_it_takes_with_its_key(self) -> None:
        (job,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        assert job["authorization"]["credentials_file"] == "/run/secrets/api_key"
        assert COMPOSE["services"]["prometheus"]["secrets"] == ["api_key"]
        (target,) = job["static_configs"][0]["targets"]
        host, _, port = target.partition(":")
        for name in SERVERS:
            service = COMPOSE["services"][name]
            assert host in service["networks"]["default"]["aliases"]
            assert host in service["environment"]["GRPO_ALLOWED_HOSTS"].split(",")
            assert service["ports"][0].endswith(f":{port}")


class TestUnit:
    @pytest.fixture
    def unit(self) -> dict[str, str]:
        parser = configparser.RawConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(DEPLOY / "grpo.service")
        return dict(parser["Service"])

    def test_it_stays_hardened(self, unit: dict[str, str]) -> None:
        hardened = {
            "DynamicUser": "yes",
            "NoNewPrivileges": "yes",
            "CapabilityBoundingSet": "",
            "ProtectSystem": "strict",
            "ProtectHome": "yes",
            "PrivateTmp": "yes",
            "PrivateDevices": "yes",
            "ProtectKernelTunables": "yes",
            "ProtectControlGroups": "yes",
            "RestrictNamespaces": "yes",
            "RestrictSUIDSGID": "yes",
            "LockPersonality": "yes",
            "UMask": "0077",
            "IPAddressDeny": "any",
            "StateDirectory": "grpo",
            "StateDirectoryMode": "0700",
        }
        assert {name: unit.get(name) for name in hardened} == hardened

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine")
    def test_systemd_understands_it_and_calls_it_safe(self, tmp_path: Path) -> None:
        # The paths of an installation do not exist here.
        text = (DEPLOY / "grpo.service").read_text()
        text = text.replace("/opt/grpo/.venv/bin/python", sys.executable).replace("/opt/grpo", str(ROOT))
        (tmp_path / "grpo.service").write_text(text)
        for command in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=15"]):
            run = ["systemd-analyze", *command, str(tmp_path / "grpo.service")]
            completed = subprocess.run(run, capture_output=True, text=True)
            assert completed.returncode == 0, completed.stdout + completed.stderr
            assert completed.stderr == ""


def list_expressions() -> list[tuple[str, str]]:
    """List the panels and rules with their expressions."""
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    rules = [(rule["alert"], rule["expr"]) for group in RULES["groups"] for rule in group["rules"]]
    return [*panels, *rules]


class TestMonitoring:
    @pytest.fixture
    def samples(self, client: TestClient) -> set[str]:
        """The names of all samples."""
        client.get("/health")
        text = client.get("/metrics").text
        return set(re.findall(r"^([a-z_]+)[ {]", text, flags=re.MULTILINE)) | OTHERS

    def test_everything_that_is_asked_for_is_there(self, samples: set[str]) -> None:
        expressions = list_expressions()
        assert len(expressions) > 25
        for title, expression in expressions:
            named = set(METRIC.findall(re.sub(r"\{[^}]*\}|\([a-z_, ]+\)(?= \()", "", expression)))
            assert named, title
            assert named <= samples, title

    def test_everything_that_matters_is_shown(self, samples: set[str]) -> None:
        shown = {name for _, expression in list_expressions() for name in METRIC.findall(expression)}
        families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in samples if name.startswith("grpo_")}
        families = {name for name in families if not name.endswith("_created")}
        unseen = {name for name in families if not any(other.startswith(name) for other in shown)}
        # Counters have a time of creation under their name without "_total".
        assert {name for name in unseen if f"{name}_total" not in families} == set()

    def test_labels_that_are_asked_for_are_the_ones_that_are_told(self, client: TestClient) -> None:
        for _ in range(2):
            text = client.get("/metrics").text
        asked = {
            label
            for _, text_ in list_expressions()
            for label in re.findall(r'[{,]([a-z_]+)=~?"', text_)
            if label != "job"
        }
        assert asked == {"status", "route", "outcome"}
        assert all(f'{label}="' in text for label in asked)

    def test_panels_have_names_and_places_of_their_own(self) -> None:
        panels: list[dict[str, Any]] = DASHBOARD["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24

    def test_grafana_finds_its_source_and_its_dashboard(self) -> None:
        provisioning = DEPLOY / "grafana" / "provisioning"
        (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
        (provider,) = yaml.safe_load((provisioning / "dashboards" / "grpo.yaml").read_text())["providers"]
        assert source["url"] == "http://prometheus:9090"
        assert source["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]
        mounts = COMPOSE["services"]["grafana"]["volumes"]
        assert f"./grafana/dashboard.json:{provider['options']['path']}/grpo.json:ro" in mounts


def test_the_health_check_needs_nothing_but_python() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse((DEPLOY / "healthcheck.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported <= sys.stdlib_module_names
