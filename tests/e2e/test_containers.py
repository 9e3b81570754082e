"""docker-compose.yml without an engine: each container's command line, bare, in namespaces of its own.

What is as in a container: the command and health check of image and compose file, an environment of nothing else, a
user without rights or a way to any, a root folder that is read-only but for /data and the tmpfs folders, a network that
nothing outside reaches, and the names of the services. What is not: the images themselves (never built), an init
process, and a network address for each service: queue and cache, which share a port, get an address of loopback each.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crosscope_local.redis import find_binary

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "containers"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
RUN = ("queue", "cache", "server", "app", "worker", "jobs")
"""The services of the profile `cpu`."""
ADDRESSES = {"queue": "127.0.0.2", "cache": "127.0.0.3"}
JOB = """
from crosscope import Client
recipe = "kind: demo-pair\\nname: tiny\\nnum_layers: 2\\nhidden_size: 16\\nbase_steps: 2\\nchat_steps: 2\\n"
with Client() as client:
    job = client.jobs.submit(recipe + "documents: 200\\nconversations: 200\\n")
    job.wait()
    compared = client.pair("tiny").compare("The red fox.")
    print("done", len(compared.tokens.ids) > 3)
"""


def missing() -> str | None:
    """What this machine lacks; None if nothing."""
    for program in ("unshare", "setpriv", "ip", "pivot_root"):
        if shutil.which(program) is None:
            return f"no {program} here"
    tried = subprocess.run(["unshare", "-Urmn", "true"], capture_output=True, text=True, check=False)
    return f"no user namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def from_image(service: dict[str, object], instruction: str) -> str:
    """What an instruction of the service's Dockerfile says; empty if it is not there."""
    build = service["build"]
    assert isinstance(build, dict)
    text = (ROOT / str(build["dockerfile"])).read_text().replace("\\\n", " ").split("\nFROM ")[-1]
    found = re.findall(rf"^{instruction} +(.*)$", text, re.MULTILINE)
    return str(found[-1]) if found else ""


def here(command: list[str]) -> list[str]:
    """A command of an image with this machine's paths."""
    paths = {
        "python": sys.executable,
        "/opt/healthcheck.py": str(ROOT / "deploy/healthcheck.py"),
        "valkey-server": str(find_binary()),
    }
    return [paths.get(word, word) for word in command]


def planned(name: str) -> dict[str, object]:
    """How one container is run."""
    service = SERVICES[name]
    if "build" not in service:  # Redis
        command = [
            *here(service["command"]),
            "--bind",
            ADDRESSES[name],
            "--dir",
            "/data" if name == "queue" else "/tmp",
        ]
        return {"command": command, "environment": {}, "health": None}
    from_compose = {
        name: re.sub(r"\$\{(\w+):\?.*?\}", r"secret-of-\1", str(value))
        for name, value in service["environment"].items()
    }
    variables = dict(re.findall(r"(\w+)=(\S+)", from_image(service, "ENV"))) | from_compose
    entry, default = (json.loads(from_image(service, each) or "[]") for each in ("ENTRYPOINT", "CMD"))
    health = json.loads(re.findall(r"CMD (\[.*\])", from_image(service, "HEALTHCHECK"))[0])
    is_checked = not service.get("healthcheck", {}).get("disable")
    return {
        "command": here([*entry, *service.get("command", default)]),
        "environment": {**variables, "PATH": "/usr/bin:/bin", "HOME": "/home/crosscope", "OMP_NUM_THREADS": "1"},
        "health": here(health) if is_checked else None,
    }


def test_every_container_runs_bare_and_works(tmp_path: Path) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    for folder in ("root", "data"):
        (tmp_path / folder).mkdir()
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{ADDRESSES.get(name, '127.0.0.1')} {name}\n" for name in (*RUN, "localhost")))
    tmpfs = sorted({folder for name in RUN for folder in SERVICES[name]["tmpfs"] if folder != "/data"})
    program = [sys.prefix, sys.base_prefix, str(ROOT), str(find_binary().parent)]
    folders = ["/bin", "/lib", "/lib64", "/usr", "/etc", "/sbin", *program]
    plan = {
        "services": {name: planned(name) for name in RUN},
        "client": [sys.executable, "-c", JOB],
        "client_environment": {
            "CROSSCOPE_ADDRESS": SERVICES["app"]["environment"]["CROSSCOPE_ADDRESS"],
            "CROSSCOPE_TOKEN": "secret-of-CROSSCOPE_TOKEN",
        },
    }
    done = subprocess.run(
        [
            *("unshare", "-Urmn", "--propagation", "private", "sh", str(HERE / "enter.sh")),
            *(str(tmp_path / "root"), str(tmp_path / "data"), str(hosts)),
            *(" ".join(folders), " ".join(tmpfs)),
            *(sys.executable, str(HERE / "run_all.py")),
        ],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    said = "\n".join(f"{name}: {code}\n{last}" for name, (code, last) in seen["ended"].items())
    assert "external" not in said, "nothing asks an outside host"
    assert seen["health"] == dict.fromkeys(("server", "app", "worker"), True), said
    assert seen["client"] == [0, "done True\n"], f"{seen['client'][1]}\n{said}"
    codes = {name: code for name, (code, _) in seen["ended"].items()}
    assert codes == {**dict.fromkeys(RUN, 0), "app": -15}, said  # Streamlit has no handler of SIGTERM
