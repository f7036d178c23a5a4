"""What runs beyond one machine is complete, hardened, and spells its settings as the server does."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))
NGINX = (DEPLOY / "nginx" / "nginx.conf").read_text()
# What Ray and uvicorn read themselves.
OTHERS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "FORWARDED_ALLOW_IPS"}


def list_pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """List the pods of the manifest, by name."""
    for found in OBJECTS:
        name, spec = found["metadata"]["name"], found["spec"]
        if found["kind"] == "Deployment":
            yield name, spec["template"]
        if found["kind"] == "RayCluster":
            yield f"{name}-head", spec["headGroupSpec"]["template"]
            yield from ((f"{name}-{group['groupName']}", group["template"]) for group in spec["workerGroupSpecs"])


PODS = dict(list_pods())


def get_object(kind: str, name: str) -> dict[str, Any]:
    (found,) = (o for o in OBJECTS if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_of_the_compose_file_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["mem_limit"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert bool(service.get("ports")) == (name == "nginx")


def test_ray_is_reached_from_its_own_network_alone() -> None:
    assert COMPOSE["networks"]["cluster"] == {"internal": True}
    on_it = {name for name, service in COMPOSE["services"].items() if "cluster" in service["networks"]}
    assert on_it == {"ray-head", "ray-worker", "trainer"}
    policy = get_object("NetworkPolicy", "grpo-ray")["spec"]
    assert policy["podSelector"]["matchLabels"] == {
        "ray.io/cluster": get_object("RayCluster", "grpo")["metadata"]["name"]
    }


def test_replicas_only_read_and_one_trainer_writes() -> None:
    services = COMPOSE["services"]
    mounts = {name: service["volumes"] for name, service in services.items() if name in ("trainer", "replica")}
    assert mounts == {"trainer": ["models:/models"], "replica": ["models:/models:ro"]}
    assert services["replica"]["environment"]["GRPO_ROLE"] == "serve"
    trainer, replica = (get_object("Deployment", f"grpo-{name}")["spec"] for name in ("trainer", "replica"))
    assert (trainer["replicas"], trainer["strategy"]) == (1, {"type": "Recreate"})
    (mount,) = (m for m in replica["template"]["spec"]["containers"][0]["volumeMounts"] if m["name"] == "models")
    assert mount["readOnly"] is True
    assert "replicas" not in replica  # the autoscaler says how many
    target = get_object("HorizontalPodAutoscaler", "grpo-replica")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "grpo-replica")


def test_a_full_disk_takes_replicas_off_the_network_and_not_the_only_trainer() -> None:
    probes = {
        name: PODS[f"grpo-{name}"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        for name in ("trainer", "replica")
    }
    assert probes == {"trainer": "/health/live", "replica": "/health/ready"}


def test_every_setting_exists_and_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = [service.get("environment", {}) for service in COMPOSE["services"].values()]
    for pod in PODS.values():
        environments += [
            {v["name"]: v.get("value", "secret") for v in c.get("env", [])} for c in pod["spec"]["containers"]
        ]
    known = {f"GRPO_{name.upper()}" for name in Settings.model_fields} | OTHERS
    assert sum(map(len, environments)) > 20
    for environment in environments:
        assert environment.keys() <= known
    for environment in environments:
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            patched.delenv("GRPO_API_KEY_FILE", raising=False)
            if find_spec("ray") is None:
                patched.delenv("GRPO_EXECUTOR", raising=False)
            assert Settings().is_replica == (environment.get("GRPO_ROLE") == "serve")


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_hardened(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "Deployment"])
def test_every_selector_finds_its_pods(kind: str) -> None:
    found = [o for o in OBJECTS if o["kind"] == kind]
    assert found
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    for o in found:
        selector = o["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert any(selector.items() <= pod.items() for pod in labels), o["metadata"]["name"]


def test_inference_goes_to_the_replicas_and_the_rest_to_the_trainer() -> None:
    (rule,) = get_object("Ingress", "grpo")["spec"]["rules"]
    paths = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert paths == {"/inference": "grpo-replica", "/": "grpo-trainer"}
    upstreams = re.findall(r"location (\S+) \{\s+proxy_pass http://(\w+);", NGINX)
    assert dict(upstreams) == {"/inference": "replicas", "/": "trainer"}
    servers = set(re.findall(r"server (\w+):8000", NGINX))
    assert servers == {"replica", "trainer"} <= COMPOSE["services"].keys()
    assert (DEPLOY / "nginx" / "nginx.conf").exists()


def test_nginx_believes_the_proxy_before_it_and_overwrites_what_visitors_say() -> None:
    believed = [ip_network(found) for found in re.findall(r"set_real_ip_from (\S+);", NGINX)]
    assert any(ip_address("172.18.0.1") in network for network in believed)
    assert all(network.is_private for network in believed)
    assert "real_ip_header X-Forwarded-For;" in NGINX
    assert "map $http_x_forwarded_proto $forwarded_proto { default $scheme; https https; }" in NGINX
    sent = dict(re.findall(r"proxy_set_header (X-Forwarded-\w+) (\S+);", NGINX))
    assert sent == {"X-Forwarded-For": "$remote_addr", "X-Forwarded-Proto": "$forwarded_proto"}


def test_all_nodes_have_the_ray_that_the_manifest_names() -> None:
    (version,) = re.findall(r"ray\[default\]==([\d.]+)", (DEPLOY / "Dockerfile.ray").read_text())
    assert get_object("RayCluster", "grpo")["spec"]["rayVersion"] == version
    requirements = ROOT / "requirements-ray.txt"
    assert re.search(rf"^ray(\[.*\])?=={re.escape(version)}$", requirements.read_text(), flags=re.MULTILINE)
