"""deploy/prometheus and deploy/grafana: by promtool, by a running Prometheus, and by the table of metrics."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_ports import free_port
from fixtures_server import run_front, run_worker
from metrics_table import documented

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import expose
from crosscope_worker.device_use import DeviceUse
from crosscope_worker.jobs.metrics import Metrics as JobsMetrics
from crosscope_worker.serve.metrics import Metrics as InferenceMetrics

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/crosscope.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
RULES = yaml.safe_load((FILES / "alerts.yml").read_text())["groups"][0]["rules"]
_FOUND = os.environ.get("PROMETHEUS") or os.path.dirname(shutil.which("promtool") or "")  # noqa: PTH120
needs_prometheus = pytest.mark.skipif(
    not _FOUND, reason="no prometheus and promtool; scripts/find-prometheus unpacks Debian's"
)


def tool(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(_FOUND) / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def names_in(expressions: list[str]) -> set[str]:
    found = {name for each in expressions for name in re.findall(r"\bcrosscope_\w+", each)}
    return {re.sub("_(bucket|sum|count)$", "", name) for name in found}


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    used = names_in(EXPRESSIONS) | names_in([rule["expr"] for rule in RULES])
    assert used - documented().keys() == set()
    assert documented().keys() - names_in(EXPRESSIONS) == set(), "what is measured is shown"


def test_every_label_of_a_sum_is_one_of_the_metric() -> None:
    everywhere = {"job", "instance", "le"}
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        known = everywhere | {label for name in names_in([expression]) for label in documented().get(name).labels}  # pyright: ignore[reportOptionalMemberAccess]
        asked = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        filtered = set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
        assert asked | filtered <= known, expression


def test_panels_do_not_overlap_and_have_titles() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    for name in ("alerts.yml", "prometheus.yml"):
        shutil.copy(FILES / name, tmp_path)
    shutil.copy(Path(__file__).parent / "alerts_test.yml", tmp_path)
    for arguments in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        done = tool("promtool", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    cases = (tmp_path / "alerts_test.yml").read_text()
    assert all(f'alertname="{rule["alert"]}"' in cases for rule in RULES), "each alert has a case"


def configured(folder: Path, ports: list[int]) -> None:
    """Our own configuration, with other ports and scraped often."""
    shutil.copy(FILES / "alerts.yml", folder)
    config = yaml.safe_load((FILES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for scraped, port in zip(config["scrape_configs"], ports, strict=True):
        scraped["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """The address of a Prometheus, and the ports that it scrapes: server, inference, jobs."""
    *scraped, port = (free_port() for _ in range(4))
    configured(tmp_path, scraped)
    options = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    process = subprocess.Popen(
        [str(Path(_FOUND) / "prometheus"), *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"http://127.0.0.1:{port}", scraped
    process.kill()
    process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def query(address: str, expression: str) -> list[Any]:
    reply = get(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert reply["status"] == "success", expression
    return reply["data"]["result"]


async def until_up(address: str) -> None:
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.2)
            try:
                up = await asyncio.to_thread(query, address, "sum(up)")
            except OSError:  # it starts
                continue
            if up and up[0]["value"][1] == "3":
                return


@needs_prometheus
async def test_a_running_prometheus_scrapes_all_three_and_answers_every_panel(
    prometheus: tuple[str, list[int]], tmp_path: Path
) -> None:
    address, (server, inference, jobs) = prometheus
    of_inference, of_jobs = InferenceMetrics(Ages()), JobsMetrics(DeviceUse(("cpu",)), Ages())
    of_inference.ran_batch([0.1], 12, 0.2)
    of_inference.watch_device("cpu", lambda: 1, 2)
    ends = [expose(of_inference.registry, inference, "A"), expose(of_jobs.registry, jobs, "B")]
    async with run_worker(tmp_path) as running, run_front(home=tmp_path, workers=running.target, metrics_port=server):
        await until_up(address)
        answers = {each: await asyncio.to_thread(query, address, each) for each in EXPRESSIONS}
        rules = await asyncio.to_thread(get, f"{address}/api/v1/rules")
    for end in ends:
        await asyncio.to_thread(end)
    beats = {each["metric"]["process"] for each in answers["crosscope_beat_age_seconds"]}
    assert beats == {"server", "inference", "jobs"}
    assert len(answers["crosscope_build_info"]) == 3
    assert len(answers["crosscope_device_memory_limit_bytes"]) == 2
    states = {rule["name"]: (rule["health"], rule["state"]) for rule in rules["data"]["groups"][0]["rules"]}
    assert set(states) == {rule["alert"] for rule in RULES}
    assert {health for health, _ in states.values()} == {"ok"}
