"""A job's process holds no secret of the processes that started it."""

import json
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from crosscope_proto import environment
from crosscope_proto.artefacts import PairManifest
from crosscope_worker.jobs.environment import job_environment, uses_hub
from crosscope_worker.jobs.settings import JobSettings
from tests.jobs.rig import Rig

PLANTED = {
    "CROSSCOPE_SERVER_TOKEN": "planted-server",
    "CROSSCOPE_TOKEN": "planted-caller",
    "HF_TOKEN": "planted-hub",
    "HUGGING_FACE_HUB_TOKEN": "planted-hub",
    "AWS_SECRET_ACCESS_KEY": "planted-cloud",
    "MKL_API_KEY": "planted-prefix",
    "DATABASE_URL": "redis://:planted-password@host",
}
RECIPE = """
kind: crosscoder
name: a
layer: 1
pair: {pair}
crosscoder: {{variant: l1, num_latents: 8, mu: 1}}
data: [{{name: web, source: {source}, path: x{column}}}]
"""


def test_a_job_gets_the_keys_of_a_store_only_where_it_publishes_there(tmp_path: Path) -> None:
    recipe = RECIPE.format(pair="{name: a}", source="jsonl", column="")
    for store, keys in ((None, set()), ("file:///x", {"AWS_SECRET_ACCESS_KEY"})):
        settings = JobSettings(home=tmp_path, queue_url="unix:///q", store=store)
        assert {name for name in PLANTED if name in job_environment(PLANTED, settings, recipe)} == keys


def test_a_running_job_shows_no_token_and_its_threads_wait_in_silence(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    rig.start_worker(**PLANTED, CROSSCOPE_WORKER_JOB_THREADS="1", HF_HOME="/cache/hub", LC_ALL="C.UTF-8")
    job = rig.submit("hold-clean")
    rig.holding(job.id)
    process = Path(f"/proc/{rig.pid('hold-clean')}")
    for file in ("environ", "cmdline"):
        shown = (process / file).read_text()
        assert "planted" not in shown
        assert str(rig.socket) not in shown  # nor the queue's address, which may hold a password
    variables = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if entry)
    assert (variables["HF_HOME"], variables["LC_ALL"]) == ("/cache/hub", "C.UTF-8")
    assert (variables["OMP_WAIT_POLICY"], variables["KMP_BLOCKTIME"]) == ("passive", "0")
    assert (variables["OMP_NUM_THREADS"], variables["MKL_NUM_THREADS"]) == ("1", "1")
    assert psutil.Process(rig.pid("hold-clean")).nice() == min(19, psutil.Process().nice() + 5)  # it gives way
    rig.go("hold-clean")
    rig.wait(job.id)


@pytest.mark.parametrize(
    ("pair", "source", "column", "uses"),
    [
        ("{name: p, base: models/b, chat: models/c}", "text", "", False),
        ("{name: p, base: models/b, chat: google/gemma-2-2b-it}", "text", "", True),
        ("{name: p, base: models/b, chat: models/c}", "hub", ", text_column: text", True),
        ("{name: here}", "text", "", False),
        ("{name: hub}", "text", "", True),
        ("{name: unknown}", "text", "", False),
    ],
)
def test_the_hubs_token_goes_where_the_hub_is_used(
    tmp_path: Path, pair: str, source: str, column: str, uses: bool
) -> None:
    for model in ("b", "c"):
        (tmp_path / "models" / model).mkdir(parents=True)
    for name, base in (("here", "base"), ("hub", "google/gemma-2-2b")):
        (tmp_path / "pairs" / name / "base").mkdir(parents=True)
        manifest = asdict(PairManifest(name, base, "base", "base"))
        (tmp_path / "pairs" / name / "pair.json").write_text(json.dumps(manifest))
    recipe = RECIPE.format(pair=pair, source=source, column=column)
    assert uses_hub(recipe, tmp_path) == uses
    settings = JobSettings(home=tmp_path, queue_url="redis://:planted-queue@host")
    given = job_environment({**PLANTED, "PATH": "/bin", "http_proxy": "http://me:planted@proxy"}, settings, recipe)
    kept = {name for name, value in given.items() if "planted" in value}
    assert kept == ({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy"} if uses else set())
    assert given["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("explainer", "kept"),
    [
        ("{by: endpoint, address: http://127.0.0.1/v1, model: m, key: MKL_API_KEY}", {"MKL_API_KEY"}),
        ("{by: endpoint, address: http://localhost:8000/v1, model: m}", set()),
        ("{by: endpoint, address: https://api.example.org/v1, model: m}", {"http_proxy"}),
        ("{by: chat}", set()),
    ],
)
def test_a_labelling_gets_the_key_that_it_names(tmp_path: Path, explainer: str, kept: set[str]) -> None:
    recipe = f"{{kind: label, name: a, explainer: {explainer}}}"
    settings = JobSettings(home=tmp_path, queue_url="redis://:planted-queue@host")
    given = job_environment({**PLANTED, "http_proxy": "http://me:planted@proxy"}, settings, recipe)
    assert {name for name, value in given.items() if "planted" in value} == kept


def test_addresses_of_endpoints_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(text: str) -> tuple[str, ...]:
        monkeypatch.setenv("CROSSCOPE_WORKER_LABEL_ADDRESSES", text)
        return JobSettings(home=tmp_path, queue_url="redis://host").label_addresses

    assert addresses("https://a.org/v1/, http://b:8000") == ("https://a.org/v1", "http://b:8000")
    assert addresses("") == ()
    with pytest.raises(ValueError, match="must begin with http:// or https://"):
        addresses("ftp://a.org")


def test_what_joins_a_cluster_goes_to_jobs_where_there_is_one(tmp_path: Path) -> None:
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/token", "RAY_AUTH_TOKEN": "planted", **PLANTED}
    alone = JobSettings(home=tmp_path, queue_url="redis://host")
    assert not given.keys() & job_environment(given, alone, "kind: nothing").keys()
    clustered = JobSettings(home=tmp_path, queue_url="redis://host", ray_address="10.0.0.1:6379")
    kept = given.keys() & job_environment(given, clustered, "kind: nothing").keys()
    assert kept == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"}


def test_a_recipe_that_cannot_be_read_gets_no_token(tmp_path: Path) -> None:
    assert not uses_hub("kind: nothing", tmp_path)
    assert not uses_hub("kind: demo-pair\nname: a\n", tmp_path)


def test_a_secret_goes_only_to_the_owner_of_its_prefix() -> None:
    given = {**PLANTED, "CROSSCOPE_WORKER_DEVICE": "cpu", "CROSSCOPE_HOME": "/home"}
    assert environment.needed(given) == {"CROSSCOPE_HOME": "/home"}
    assert environment.needed(given, environment.SERVER).keys() == {"CROSSCOPE_HOME", "CROSSCOPE_SERVER_TOKEN"}
    assert environment.needed(given, environment.COMPUTE, environment.HUB) == {"CROSSCOPE_HOME": "/home"}
