"""Ports, variables and flags are spelled alike in all files of a deployment, and the server knows them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_cli.server_options import add_server_options
from grpo_terminal import Parser
from service.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
FILES = [path for path in DEPLOY.rglob("*") if path.suffix not in (".key", ".password", ".token") and path.is_file()]
# A port of the machine, which compose reads itself, and what stands for any name.
OTHERS = {"GRPO_PUBLISHED_PORT", "GRPO_NAME"}


def read_image() -> dict[str, str]:
    """Read the variables that the image sets."""
    return dict(re.findall(r"\b(GRPO_\w+)=(\S+)", DOCKERFILE))


def list_objects(found: Any) -> Iterator[dict[str, Any]]:
    """List the mappings in a document, inner ones included."""
    if isinstance(found, dict):
        yield found
    for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from list_objects(inner)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_of_the_server_is_a_setting(path: Path) -> None:
    named = set(re.findall(r"\bGRPO_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
    assert named <= {f"GRPO_{name.upper()}" for name in Settings.model_fields} | OTHERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_flag_of_the_server_exists(path: Path) -> None:
    parser = Parser()
    add_server_options(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    commands = re.findall(r"run_api\.py([^\n\"&]*)", path.read_text())
    assert {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)} <= known


def test_the_image_has_settings_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in read_image().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.host, str(settings.models_dir)) == ("0.0.0.0", "/models")
    assert settings.tensorboard_dir.is_relative_to(settings.models_dir), "all that is written lies in the volume"


def test_everybody_means_the_port_of_the_image() -> None:
    port = int(read_image()["GRPO_PORT"])
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, flags=re.MULTILINE) == [str(port)]
    published = [
        found.rpartition(":")[2] for found in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-server"]["ports"]
    ]
    assert published == [str(port)]
    upstreams = re.findall(r"server \w+:(\d+)", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert upstreams == [str(port)] * 2
    objects = list(list_objects(list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))))
    ports = [found for found in objects if found.get("name") == "http"]
    assert [found.get("containerPort", found.get("port", port)) for found in ports] == [port] * len(ports)
    assert sum("containerPort" in found for found in ports) == sum("targetPort" in found for found in ports) == 2
    policies = [found for found in objects if found.get("kind") == "NetworkPolicy"]
    open_to_all = [rule["ports"] for found in policies for rule in found["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": port}]]


def test_nginx_listens_where_compose_publishes_it() -> None:
    (published,) = yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())["services"]["nginx"]["ports"]
    (listens,) = re.findall(r"listen (\d+);", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert published.endswith(f":{listens}")


def test_ray_is_reached_at_one_address_of_each_cluster() -> None:
    for name, host in (("compose.cluster.yaml", "ray-head"), ("kuberay.yaml", "grpo-head-svc")):
        text = (DEPLOY / name).read_text()
        found = re.findall(r"--address=([^\s\"]+)", text) + re.findall(
            r"GRPO_RAY_ADDRESS(?::|, value:) \"?([^\s\"}]+)", text
        )
        assert set(found) == {f"{host}:6379"}
        assert len(found) >= 2
    assert "--port=6379" in (DEPLOY / "compose.cluster.yaml").read_text()
    cluster = next(
        found for found in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()) if found["kind"] == "RayCluster"
    )
    assert f"{cluster['metadata']['name']}-head-svc" == "grpo-head-svc", "as KubeRay calls the head's service"


def test_what_is_asked_for_of_one_part_is_in_the_limits_of_the_other() -> None:
    for name in ("compose.yaml", "compose.cluster.yaml"):
        services = yaml.safe_load((DEPLOY / name).read_text())["services"]
        grace = [s["stop_grace_period"] for s in services.values() if "stop_grace_period" in s]
        assert all(int(period.removesuffix("s")) > 2 * Settings().shutdown_grace_seconds for period in grace)
        assert grace
    body = re.findall(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert [int(size) * 2**20 for size in body] == [Settings().max_upload_bytes]
