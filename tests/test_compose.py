"""docker-compose.yml and the Dockerfiles: by schema, and by the promises that a schema does not know."""

import json
import re
import socket
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pydantic_settings import BaseSettings

from crosscope.app.settings import Login as AppLogin
from crosscope.app.settings import read_settings as read_app_settings
from crosscope_server.settings import Settings
from crosscope_worker.jobs.settings import JobSettings
from crosscope_worker.serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
HEALTHCHECK = ROOT / "deploy/healthcheck.py"


def test_it_meets_the_schema_of_the_compose_specification() -> None:
    done = subprocess.run([ROOT / "scripts/check-compose"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_front_door_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"server": ["127.0.0.1:50051:50051"], "app": ["127.0.0.1:8501:8501"]}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", OURS)
def test_what_is_built_exists_and_runs_as_nobody_in_particular(name: str) -> None:
    text = (ROOT / OURS[name]["build"]["dockerfile"]).read_text()
    _, *stages = text.split("\nFROM ")
    assert len(stages) == 2, "one stage builds, one runs"
    assert re.search(r"^USER crosscope$", stages[-1], re.MULTILINE)
    assert "HEALTHCHECK" in stages[-1]
    assert all(re.match(r"[\w/.-]+:\d[\w.-]+\s", stage) for stage in stages), "bases are pinned by a tag"
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert (ROOT / source).exists()
        assert f"!{source.partition('/')[0]}" in (ROOT / ".dockerignore").read_text().split()


@pytest.mark.parametrize("kind", ["server", "client"])
def test_images_without_torch_do_not_see_the_worker(kind: str) -> None:
    text = (ROOT / f"deploy/Dockerfile.{kind}").read_text()
    assert "worker" not in text


@pytest.mark.parametrize("name", OURS)
def test_the_health_check_asks_where_the_service_listens(name: str) -> None:
    service = OURS[name]
    if service.get("command") == ["jobs"]:
        assert service["healthcheck"] == {"disable": True}, "it listens nowhere"
        return
    assert "healthcheck" not in service, "it is its image's"
    listens = [value for key, value in service["environment"].items() if key.endswith(("_LISTEN", "_PORT"))]
    image = (ROOT / service["build"]["dockerfile"]).read_text()
    command = re.search(r"^HEALTHCHECK .*?CMD (\[[^\]]*\])$", image, re.MULTILINE | re.DOTALL)
    assert command is not None
    ports = [int(port) for port in re.findall(r":(\d+)", json.loads(command[1])[-1])]
    assert ports == [int(each.rpartition(":")[2]) for each in listens]


def test_what_is_waited_for_can_be_healthy() -> None:
    waited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert waited == {"queue", "cache", "server"}
    assert all(SERVICES[name]["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"] for name in ("queue", "cache"))


def variables(settings: type[BaseSettings]) -> set[str]:
    prefix = str(settings.model_config.get("env_prefix"))
    return {
        field.validation_alias if isinstance(field.validation_alias, str) else f"{prefix}{name.upper()}"
        for name, field in settings.model_fields.items()
    }


@pytest.mark.parametrize(("name", "settings"), [("server", Settings), ("jobs", JobSettings), ("jobs-gpu", JobSettings)])
def test_settings_are_ones_that_the_process_reads(name: str, settings: type[BaseSettings]) -> None:
    assert set(OURS[name]["environment"]) <= variables(settings)


def test_settings_of_the_app_are_ones_that_it_reads() -> None:
    code = (ROOT / "client/crosscope/app/settings.py").read_text()
    given = dict(OURS["app"]["environment"])
    assert all(f'"{variable.removeprefix("CROSSCOPE_APP_")}"' in code or variable in code for variable in given)
    assert AppLogin(given["CROSSCOPE_APP_LOGIN"]) is AppLogin.TOKEN
    read_app_settings(given)


def test_what_listens_for_others_is_taken_by_name_and_asks_for_tokens() -> None:
    """As Compose fills the secrets in."""
    for name in ("server", "worker", "worker-gpu"):
        given = {key: "s" if value.startswith("${") else value for key, value in OURS[name]["environment"].items()}
        kind: Any = Settings if name == "server" else ServeSettings
        prefix = str(kind.model_config["env_prefix"])
        fields = {key.removeprefix(prefix).lower(): value for key, value in given.items() if key.startswith(prefix)}
        fields.pop("device", None)  # the machine of the test may have no GPU
        found = kind(**fields)
        assert found.token is not None
        assert not found.allow_anyone


@pytest.mark.parametrize("name", ["worker-gpu", "jobs-gpu"])
def test_the_gpu_profile_reserves_a_device_and_uses_it(name: str) -> None:
    service = SERVICES[name]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["environment"]["CROSSCOPE_WORKER_DEVICE"] == "cuda"


def healthy(*arguments: str) -> bool:
    return subprocess.run([sys.executable, HEALTHCHECK, *arguments]).returncode == 0


def test_the_grpc_health_check_follows_the_server() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert healthy("grpc", f"127.0.0.1:{port}")
        status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not healthy("grpc", f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert not healthy("grpc", f"127.0.0.1:{port}")


def test_the_http_health_check_fails_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert not healthy("http", f"http://127.0.0.1:{port}/")
