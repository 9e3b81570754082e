"""The real thing, small: Redis, server and job workers as processes of their own, in a folder of their own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
import redis
from fixtures_waiting import PATIENCE_S, until

from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc

HERE = Path(__file__).parent
WORKER = (
    "import sys; from job_kinds import KINDS; from crosscope_worker.jobs.process import main; sys.exit(main(KINDS))"
)
Process = subprocess.Popen[bytes]


class Rig:
    """Starts and stops the processes of one test."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cj"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.socket = self.folder / "q.sock"
        self._address = f"unix:{self.folder}/s.sock"
        self._processes: list[Process] = []
        self.channel = grpc.insecure_channel(self._address)
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)

    def close(self) -> None:
        self.channel.close()
        for process in reversed(self._processes):
            self.stop(process)
        shutil.rmtree(self.folder)

    def start_redis(self) -> Process:
        command = ["crosscope_local.redis", "queue", "--folder", str(self.folder / "queue"), "--socket"]
        process = self._start(["-m", *command, str(self.socket)])
        client = redis.Redis(unix_socket_path=str(self.socket))

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        until(answers)
        client.close()
        return process

    def start_server(self, queue_url: str | None = None) -> Process:
        process = self._start(
            ["-m", "crosscope_server"],
            CROSSCOPE_SERVER_LISTEN=self._address,
            CROSSCOPE_SERVER_QUEUE_URL=self.queue_url if queue_url is None else queue_url,
            CROSSCOPE_SERVER_LOG_LEVEL="warning",
            CROSSCOPE_SERVER_ALLOW_ANYONE="true",
        )
        self.jobs.GetRecipeSchema(jobs_pb2.GetRecipeSchemaRequest(), wait_for_ready=True, timeout=PATIENCE_S)
        return process

    def start_worker(self, **environment: str) -> Process:
        given = {"CROSSCOPE_WORKER_QUEUE_URL": self.queue_url, "PYTHONPATH": str(HERE), **environment}
        return self._start(["-c", WORKER], **given)

    def start_real_worker(self, **environment: str) -> Process:
        """Starts a worker that runs the kinds of jobs that users submit."""
        given = {"CROSSCOPE_WORKER_QUEUE_URL": self.queue_url, **environment}
        return self._start(["-m", "crosscope_worker", "jobs"], **given)

    def start_below_a_supervisor(self, arguments: list[str]) -> Process:
        """Starts a process that has started a job worker, whose pid is then in child.pid."""
        start = (
            "import subprocess, sys; from pathlib import Path; "
            f"child = subprocess.Popen([sys.executable, *{arguments!r}]); "
            f"Path({str(self.folder / 'child.pid')!r}).write_text(str(child.pid)); child.wait()"
        )
        return self._start(["-c", start], CROSSCOPE_WORKER_QUEUE_URL=self.queue_url, PYTHONPATH=str(HERE))

    @property
    def queue_url(self) -> str:
        return f"unix://{self.socket}"

    def stop(self, process: Process) -> None:
        """Sends SIGTERM, and waits until the process has ended."""
        process.terminate()
        process.wait(PATIENCE_S)

    def submit(self, name: str, *after: str, key: str = "", folder: str = "") -> jobs_pb2.Job:
        recipe = f"kind: demo-pair\nname: {name}\n"
        request = jobs_pb2.SubmitJobRequest(recipe_yaml=recipe, after=after, idempotency_key=key, folder=folder)
        return self.jobs.SubmitJob(request, timeout=PATIENCE_S).job

    def get(self, job_id: str) -> jobs_pb2.Job:
        return self.jobs.GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=PATIENCE_S).job

    def cancel(self, job_id: str) -> jobs_pb2.Job:
        return self.jobs.CancelJob(jobs_pb2.CancelJobRequest(id=job_id), timeout=PATIENCE_S).job

    def retry(self, job_id: str) -> jobs_pb2.Job:
        return self.jobs.RetryJob(jobs_pb2.RetryJobRequest(id=job_id), timeout=PATIENCE_S).job

    def watch(
        self, job_id: str, after: str = "", timeout_s: float = PATIENCE_S
    ) -> "grpc.CallIterator[jobs_pb2.WatchJobResponse]":
        return self.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job_id, after_event=after), timeout=timeout_s)

    def wait(self, job_id: str, timeout_s: float = PATIENCE_S) -> jobs_pb2.Job:
        """The job once it has ended."""
        return list(self.watch(job_id, timeout_s=timeout_s))[-1].job

    def wait_for(self, job_id: str, happens: Callable[[jobs_pb2.Job], bool]) -> jobs_pb2.Job:
        """The job as soon as `happens` holds."""
        for reply in self.watch(job_id):
            if happens(reply.job):
                return reply.job
        raise AssertionError(f"the job ended first: {self.get(job_id)}")

    def holding(self, job_id: str) -> jobs_pb2.Job:
        """The job when it has reached its stage "hold"."""
        return self.wait_for(job_id, lambda job: job.stage == "hold")

    def go(self, name: str) -> None:
        (self.home / f"{name}.go").touch()

    def pid(self, name: str) -> int:
        return int((self.home / f"{name}.pid").read_text())

    def published(self, name: str) -> int:
        """The number of times that the job has published."""
        path = self.home / f"{name}.published"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def _start(self, arguments: list[str], **environment: str) -> Process:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CROSSCOPE_HOME": str(self.home), **environment}
        process = subprocess.Popen([sys.executable, *arguments], env=environment)
        self._processes.append(process)
        return process


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(process: Process) -> None:
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
