"""The job worker: `python -m crosscope_worker jobs`. Takes jobs from the queue and runs each in a process of its own.

The one module of the worker that imports rq. RQ passes ids and keeps the lease of the running job alive; the job's task
and outcome are in its record (`crosscope_proto.job_record`). Redis may go away and come back at any time.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now as rq_now
from rq.worker import Worker

from crosscope_proto import job_record, keys
from crosscope_proto.artefacts import job_folder
from crosscope_proto.beats import EVERY_S, Beats
from crosscope_proto.ending import WRONG_SETTINGS
from crosscope_proto.exposition import expose
from crosscope_proto.job_record import DeviceNote, WorkerNote
from crosscope_proto.logs import configure_logging
from crosscope_proto.settings import SettingsError, read_settings
from crosscope_proto.tracing import configure_tracing
from crosscope_store.errors import StoreError
from crosscope_worker.device_use import DeviceUse
from crosscope_worker.jobs.child import JobProcess
from crosscope_worker.jobs.claim import QueueAway, is_passing, patiently
from crosscope_worker.jobs.entry import Attempt
from crosscope_worker.jobs.environment import job_environment
from crosscope_worker.jobs.kinds import KINDS
from crosscope_worker.jobs.machine import Machine, find_machine
from crosscope_worker.jobs.metrics import Metrics
from crosscope_worker.jobs.retention import retry_hint, sweep
from crosscope_worker.jobs.settings import JobSettings
from crosscope_worker.jobs.traced import attempt_span
from crosscope_worker.lifeline import die_with_parent

BEAT_S = 5.0
STOP_GRACE_S = 2.0
"""Seconds after which a job's process is killed if it does not stop when its worker stops."""
PROCESS_S = 10.0
"""A job worker that has not moved at all for this long counts as hung."""
LOOP_S = 300.0
"""A job worker whose main loop has not moved for this long counts as hung. A call waits up to a minute for a queue that
stalls; old checkpoints take a while to remove."""
SETTLE_WAIT_S = 600.0
"""How long an ended job waits for Redis, if it is away, before the job is left to the janitor."""

log = logging.getLogger(__name__)


class JobWorker(Worker):
    """An RQ worker that runs each job in a fresh interpreter and settles it by its record."""

    max_connection_wait_time = 2.0

    def __init__(
        self,
        settings: JobSettings,
        kinds: Mapping[str, str],
        connection: Redis,
        machine: Machine,
        use: DeviceUse,
        metrics: Metrics,
        moves: Callable[[], None],
    ) -> None:
        """`moves` is called at each turn of the main loop."""
        super().__init__(
            [Queue(keys.JOB_QUEUE, connection=connection, serializer=JSONSerializer)],
            name=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            connection=connection,
            worker_ttl=keys.LEASE_S,
            job_monitoring_interval=int(BEAT_S),
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self._settings, self._kinds, self._machine, self._use = settings, kinds, machine, use
        self._metrics, self._moves = metrics, moves
        self._shelf = settings.shelf()
        self._attending = False
        self._claim = connection.register_script(job_record.CLAIM)
        self._release = connection.register_script(job_record.RELEASE)
        self._expire = connection.register_script(job_record.EXPIRE)

    @property
    def stopped(self) -> bool:
        """Whether a signal asked the worker to stop."""
        return self._stop_requested

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stops at once if idle, otherwise after the running job has been given back."""
        self._stop_requested = True
        if not self._attending:
            raise StopRequested

    def run_maintenance_tasks(self) -> None:
        """Removes expired checkpoints, every ten minutes; repairs are the work of the janitor in the server."""
        self.last_cleaned_at = rq_now()
        self._sweep()

    def _sweep(self) -> None:
        settings = self._settings

        def expire(job_id: str, before: float) -> str:
            return cast("bytes", self._expire(keys=[keys.job_key(job_id)], args=[repr(before)])).decode()

        try:
            keep_s, keep_bytes = settings.keep_checkpoints_days * 86_400, settings.keep_checkpoints_gb * 1e9
            removed = sweep(settings.home / "jobs", expire, keep_s, keep_bytes, time.time())
        except RedisError as error:
            if not is_passing(error):
                raise
            return
        if removed:
            log.info("removed the checkpoints of %s", ", ".join(removed))

    def check_for_suspension(self, burst: bool) -> None:
        """Nothing: nobody suspends workers through RQ."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Reports that this worker lives, to RQ and, with its device, to plans; an absent Redis is ignored here."""
        self._moves()
        try:
            super().heartbeat(timeout, pipeline)
            machine = self._machine
            note = WorkerNote(
                time.time(),
                machine.device,
                machine.name,
                machine.memory_bytes,
                machine.free_bytes(),
                machine.num_devices,
                tuple(DeviceNote(**asdict(each)) for each in self._use.last()),
            )
            self.connection.hset(keys.JOB_WORKERS, self.name, note.text())
            self._metrics.ages.beat("queue")
        except RedisError as error:
            if not is_passing(error):
                raise

    def register_death(self) -> None:
        """Takes this worker off the lists; an absent Redis forgets it by itself."""
        with contextlib.suppress(RedisError):
            self.connection.hdel(keys.JOB_WORKERS, self.name)
        super().register_death()

    def subscribe(self) -> None:
        """Nothing: requests to stop a job are in the job's record."""

    def unsubscribe(self) -> None:
        """Nothing: see subscribe."""

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        """Duration of a running job's lease, in seconds."""
        return keys.LEASE_S

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Runs a job in a process of its own, and settles it."""
        self._attending = True
        try:
            execution = self.prepare_execution(job)
            self.prepare_job_execution(job, remove_from_intermediate_queue=True)
            job.started_at = rq_now()
            claim = uuid.uuid4().hex
            if self._claim(keys=_record_keys(job.id), args=[claim, repr(time.time())]) != b"ok":
                self._drop(job, execution)
                return
            with attempt_span(self.connection, job.id) as span:
                child = self._start(job.id, claim)
                self._metrics.began(child.pid)
                try:
                    self._attend(child, job, execution)
                finally:
                    child.close()
                log.info("job %s: its process %s", job.id, child.ending())
                outcome = self._settle(job, queue, execution, claim, child)
                self._metrics.ended(outcome)
                span.set(outcome=outcome)
        finally:
            self._attending = False

    def _start(self, job_id: str, claim: str) -> JobProcess:
        attempt = Attempt(
            job_id=job_id,
            claim=claim,
            queue_url=self._settings.queue_url,
            home=str(self._settings.home),
            device=self._settings.device,
            data_roots=[str(folder) for folder in self._settings.data_roots],
            label_addresses=list(self._settings.label_addresses),
            parent_pid=os.getpid(),
            kinds=dict(self._kinds),
            keeps_checkpoints=self._settings.keeps_checkpoints,
            beat_s=self._settings.job_beat_s,
            silent_s=self._settings.job_silent_s,
            nice=self._settings.job_nice,
            ray_address=self._settings.ray_address,
            store=self._settings.store,
            store_cache_bytes=self._settings.store_cache_bytes,
        )
        with contextlib.suppress(StoreError):  # The job asks again, and says what is wrong.
            self._shelf.refresh()
        recipe = cast("bytes | None", self.connection.hget(keys.job_key(job_id), "recipe")) or b""
        environment = job_environment(os.environ, self._settings, recipe.decode())
        return JobProcess(attempt.to_json(), environment)

    def _attend(self, child: JobProcess, job: Job, execution: Execution) -> None:
        """Waits for a job's process: renews its lease, passes on a stop, and kills it if it hangs or does not stop."""
        next_beat, kill_at = time.monotonic() + BEAT_S, float("inf")
        while not child.ends_within(0.25):
            self._moves()
            self._metrics.ages.beat("job")
            moment = time.monotonic()
            if self._stop_requested and kill_at == float("inf"):
                child.terminate()
                kill_at = moment + STOP_GRACE_S
            if moment >= next_beat:
                next_beat = moment + BEAT_S
                if self._beat(job, execution):
                    log.warning("job %s did not stop within %d s and is killed", job.id, job_record.CANCEL_GRACE_S)
                    kill_at = moment
            if kill_at > moment and (hung := child.hung()):
                log.warning("the process of job %s %s and is killed", job.id, hung)
                kill_at = moment
            if moment >= kill_at:
                child.kill()

    def _beat(self, job: Job, execution: Execution) -> bool:
        """Renews the lease if Redis answers; returns whether the job's time to stop is over."""
        try:
            self.maintain_heartbeats(job, execution)
            asked_at = cast("bytes | None", self.connection.hget(keys.job_key(job.id), "cancel_at"))
        except RedisError as error:
            if not is_passing(error):
                raise
            return False
        return bool(asked_at) and time.time() - float(asked_at or 0) > job_record.CANCEL_GRACE_S

    def _settle(self, job: Job, queue: Queue, execution: Execution, claim: str, child: JobProcess) -> str:
        """Ends an attempt in the queue's books; returns its outcome, "unsettled" if the queue stayed away."""

        def stopping() -> bool:
            self._moves()
            return self._stop_requested

        job.ended_at = rq_now()
        try:
            outcome = patiently(lambda: self._outcome(job.id, claim, child), SETTLE_WAIT_S, stopping)
            if outcome in ("succeeded", "ended"):
                self._sweep()
            patiently(lambda: self._tell_rq(outcome, job, queue, execution), SETTLE_WAIT_S, stopping)
        except QueueAway as error:
            log.warning("job %s is left to the janitor: %s", job.id, error)
            return "unsettled"
        return outcome

    def _outcome(self, job_id: str, claim: str, child: JobProcess) -> str:
        """The outcome of the job: "succeeded", "ended" in another way, "again", or "lost" to another attempt."""
        how = child.ending()
        message, last = f"Its process {how}; it will be resumed.", f"Given up: its process {how}, and not for the first"
        last = f"{last} time ({job_record.MAX_CRASHES} crashes)."
        if child.may_have_run_out_of_memory:
            last = f"{last} Signal 9 often means that memory ran out."
        if self._settings.keeps_checkpoints:
            last = f"{last} {retry_hint(Path(job_folder(self._settings.home, job_id)))}".strip()
        if self._stop_requested:
            message, last = "Its worker stopped; it will be resumed.", ""
        arguments = [claim, repr(time.time()), message, last, job_record.MAX_CRASHES]
        released = cast("bytes", self._release(keys=_record_keys(job_id), args=arguments))
        if released == b"ok":
            return "again"
        end = cast("bytes | None", self.connection.hget(keys.job_key(job_id), "end")) or b""
        if end.decode() == job_record.SUCCEEDED:
            return "succeeded"
        return "ended" if end else "lost"

    def _tell_rq(self, outcome: str, job: Job, queue: Queue, execution: Execution) -> None:
        if outcome == "succeeded":
            self.handle_job_success(job, queue, queue.started_job_registry, execution)
        elif outcome == "ended":
            self.handle_job_failure(job, queue, exc_string="see the job's record", execution=execution)
        else:
            self._drop(job, execution)
            if outcome == "again":
                queue.enqueue_job(job, at_front=True)

    def _drop(self, job: Job, execution: Execution) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline, execution)
            pipeline.execute()


def main(kinds: Mapping[str, str] = KINDS) -> int:
    """Runs the job worker until SIGTERM; the exit code is 1 or WRONG_SETTINGS if it could not start."""
    configure_logging("jobs")
    configure_tracing("jobs")
    try:
        settings = read_settings(JobSettings)
        connection = Redis.from_url(
            settings.queue_url,
            socket_timeout=15,
            socket_connect_timeout=5,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),
        )
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTINGS
    except ValueError as error:  # for instance a wrong parameter of the address
        sys.stderr.write(f"CROSSCOPE_WORKER_QUEUE_URL: {error}\n")
        return WRONG_SETTINGS
    die_with_parent(os.getppid(), signal.SIGTERM)
    beats = Beats.from_environment()
    threading.Thread(target=_beat, args=(beats,), name="beats", daemon=True).start()
    machine = find_machine(settings.device)
    use = DeviceUse(machine.devices)
    metrics = Metrics(use, beats.ages)
    if settings.jobs_metrics_port is not None:
        try:
            expose(metrics.registry, settings.jobs_metrics_port, "CROSSCOPE_WORKER_JOBS_METRICS_PORT")
        except OSError as error:
            sys.stderr.write(f"{error.strerror}\n")
            return 1

    def moves() -> None:
        beats("main loop", LOOP_S)

    return _work(connection, lambda: JobWorker(settings, kinds, connection, machine, use, metrics, moves), moves)


def _beat(beats: Beats) -> None:
    """Beats for the process as a whole, for ever."""
    while True:
        beats("process", PROCESS_S)
        time.sleep(EVERY_S)


def _work(connection: Redis, new_worker: Callable[[], JobWorker], moves: Callable[[], None]) -> int:
    """Runs for ever, with a new RQ worker whenever Redis was away."""
    away, worker = False, None
    while worker is None or not worker.stopped:
        moves()
        signal.signal(signal.SIGTERM, _exit)
        signal.signal(signal.SIGINT, _exit)
        try:
            connection.ping()
            away = False
            worker = new_worker()
            worker.work(logging_level="INFO")
        except StopRequested:
            return 0
        except RedisError as error:
            if not is_passing(error):
                raise
            if not away:
                log.warning("the job queue does not answer (%s); waiting for it", error)
            away = True
        if away:
            time.sleep(1.0)
    return 0


def _exit(*_: object) -> None:
    raise SystemExit(0)


def _record_keys(job_id: str) -> list[str]:
    return [keys.job_key(job_id), keys.events_key(job_id)]
