"""Server, inference worker and job worker with a home each, as on three machines that share an S3 store."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import redis
from fixtures_ports import free_port
from fixtures_store import S3Server, files_below
from fixtures_waiting import PATIENCE_S, until

from crosscope import Client, CrosscopeError, Job, JobFailed, Unavailable
from crosscope_local.backup import restore
from crosscope_store.moves import push
from crosscope_store.remote import Store

HOMES = Path(__file__).parents[1] / "e2e" / "homes"
RECIPE = (HOMES / "crosscoder.yaml").read_text().replace("name: tiny", "name: toy", 1)


class Machines:
    """The processes, each with the store's key and a home of its own."""

    def __init__(self, folder: Path, s3: S3Server, url: str) -> None:
        self.folder, self.s3, self.url = folder, s3, url
        self.address = f"127.0.0.1:{free_port()}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def home(self, name: str) -> Path:
        return self.folder / name

    def start(self, name: str, *module: str, **environment: str) -> subprocess.Popen[bytes]:
        self.home(name).mkdir(exist_ok=True)
        given = {"CROSSCOPE_HOME": str(self.home(name)), "CROSSCOPE_STORE": self.url, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                env=os.environ | self.s3.environment | given | environment,
                stderr=said,
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(PATIENCE_S)

    def start_all(self) -> None:
        queue, worker = self.folder / "q.sock", f"unix:{self.folder}/w.sock"
        self.start(
            "queue", "crosscope_local.redis", "queue", "--folder", str(self.home("queue")), "--socket", str(queue)
        )
        self.start("prompts", "crosscope_worker", "serve", CROSSCOPE_WORKER_LISTEN=worker)
        with redis.Redis(unix_socket_path=str(queue)) as client:
            until(lambda: answers(client))
        self.start("jobs", "crosscope_worker", "jobs", CROSSCOPE_WORKER_QUEUE_URL=f"unix://{queue}")
        self.start(
            "pages",
            "crosscope_server",
            CROSSCOPE_SERVER_LISTEN=self.address,
            CROSSCOPE_SERVER_WORKERS=worker,
            CROSSCOPE_SERVER_QUEUE_URL=f"unix://{queue}",
            CROSSCOPE_SERVER_ALLOW_ANYONE="true",
        )


def serves_prompts(client: Client) -> bool:
    try:
        return client.health()["prompts"]
    except Unavailable:
        return False


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Generator[Machines]:
    folder = tmp_path_factory.mktemp("m")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        running = Machines(folder, s3, s3.bucket())
        home = running.home("maker")
        restore(sorted(HOMES.glob("*.tar.xz"))[-1], home)
        assert [(each.key.kind, each.sentence) for each in push(home, Store(running.url))] == [
            ("pairs", "published"),
            ("crosscoders", "published"),
        ]
        running.start_all()
        try:
            yield running
        finally:
            running.stop()
            s3.start()  # for the tests behind these


@pytest.fixture(scope="module")
def client(machines: Machines) -> Generator[Client]:
    with Client(machines.address, timeout_s=60) as asking:
        until(lambda: serves_prompts(asking), 2 * PATIENCE_S)
        yield asking


@pytest.fixture(scope="module")
def job(client: Client) -> Job:
    submitted = client.jobs.submit(RECIPE)
    submitted.wait(timeout_s=150)
    return submitted


def brought(home: Path, name: str) -> set[str]:
    return {Path(file).name for file in files_below(home / "crosscoders" / name)}


@pytest.mark.slow
def test_what_one_machine_publishes_is_shown_and_asked_on_others(machines: Machines, client: Client, job: Job) -> None:
    until(lambda: {each.name for each in client.crosscoders()} == {"tiny", "toy"})
    toy = client.crosscoder("toy")
    assert toy.info.version_id == job.info.version_id
    later = {"part-00.parquet", "sequences.parquet", "crosscoder.safetensors"}
    assert not brought(machines.home("pages"), "toy") & later, "nobody has asked for it yet"

    most = toy.latents(limit=1, order_by="-num_active")[0]
    example = toy.latent(most.id).examples(limit=1)[0]
    assert max(example.activations) == example.max > 0
    encoding = toy.encode("the red fox sees the small bird", top_k=4)
    assert encoding.activations.size > 0
    assert {"crosscoder.safetensors", "latents.parquet"} <= brought(machines.home("prompts"), "toy")
    assert "crosscoder.safetensors" not in brought(machines.home("pages"), "toy")
    assert not (machines.home("pages") / "pairs/tiny/base/model.safetensors").exists()
    found = client.capabilities().store
    assert (found.url, found.published, found.sentence) == (machines.url, 3, "")
    assert found.copies_bytes > 1000


@pytest.mark.slow
def test_a_store_that_is_away_leaves_what_is_here(machines: Machines, client: Client, job: Job) -> None:
    toy = client.crosscoder("toy")
    toy.encode("one", top_k=4)
    most = toy.latents(limit=1, order_by="-num_active")[0]
    assert toy.latent(most.id).examples(limit=1)
    machines.s3.stop()

    until(lambda: client.capabilities().problems)
    problems = [str(each) for each in client.capabilities().problems]
    assert len(problems) == 1
    assert problems[0].startswith(f"What is published cannot be looked up: the store {machines.url} does not answer")
    assert toy.latent(most.id).examples(limit=1)
    assert toy.encode("the bird finds two cats", top_k=4).activations.size > 0
    with pytest.raises(CrosscopeError, match=r"metrics\.parquet is not here yet, and the store .* does not answer"):
        toy.training_curves()
    status = subprocess.run(
        [str(Path(sys.executable).parent / "crosscope"), "status", "--address", machines.address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"away: {machines.url}, 3 published" in status.stdout


@pytest.mark.slow
def test_a_job_says_that_its_store_has_no_bucket(machines: Machines, client: Client, job: Job) -> None:
    machines.s3.stop()
    machines.s3.start()  # moto forgets its buckets
    refused = client.jobs.submit(RECIPE.replace("name: toy", "name: other", 1))
    with pytest.raises(JobFailed, match="make the bucket, or name another"):
        refused.wait(timeout_s=150)
