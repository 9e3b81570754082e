"""How many jobs wait, run and have ended, and how far those that run have come: for metrics and for clients.

Asks with a connection of its own, which blocks: call it off the event loop. Knows nothing about gRPC or RQ.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from crosscope_proto import job_record, keys
from crosscope_proto.job_record import WorkerNote

STATES = ("queued", "running", job_record.SUCCEEDED, job_record.FAILED, job_record.CANCELLED)
SPEED = "tokens_per_second"
"""The figure of a job that says how fast it goes."""
_TIMEOUT_S = 1.0
_CHUNK = 1000
_FIELDS = ("claim", "end", "created_at", "kind", "name", "total_fraction", "stage", "message")


@dataclass(frozen=True)
class RunningJob:
    """A job that an attempt runs."""

    id: str
    kind: str
    name: str
    stage: str
    message: str
    done: float
    """Share of the whole job, 0 to 1."""
    tokens_per_s: float | None
    """None where the job does not say."""


@dataclass(frozen=True)
class JobFigures:
    """All jobs at one moment."""

    by_state: dict[str, int]
    """Has every state of STATES."""
    oldest_queued_s: float
    """How long the job that has waited longest has waited; 0 if none waits."""
    running: tuple[RunningJob, ...]
    workers: tuple[WorkerNote, ...]
    """Job workers that listen."""


class JobCounter:
    """Counts the jobs of one queue. Remembers which have ended, so that a count asks for the open ones only."""

    def __init__(self, queue_url: str) -> None:
        """Connects when first used."""
        self._redis = Redis.from_url(
            queue_url, decode_responses=True, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        self._lock = threading.Lock()
        self._ended: dict[str, str] = {}

    def count(self) -> JobFigures:
        """The figures of now. Raises redis.RedisError if the queue is away."""
        with self._lock:
            ids = cast("list[str]", self._redis.zrange(keys.JOB_INDEX, 0, -1))
            still_open = cast("set[str]", self._redis.smembers(keys.OPEN_JOBS))
            self._ended = {job: self._ended[job] for job in ids if job in self._ended and job not in still_open}
            asked = [job for job in ids if job not in self._ended]
            records = dict(zip(asked, self._records(asked), strict=True))
            self._ended |= {job: end for job, (_, end, *_) in records.items() if end and job not in still_open}
            ends = Counter(self._ended.values()) + Counter(
                end or ("running" if claim else "queued")
                for job, (claim, end, *_) in records.items()
                if job not in self._ended
            )
            waiting = [float(created or 0) for claim, end, created, *_ in records.values() if not claim and not end]
            running = [self._running(job, record) for job, record in records.items() if record[0] and not record[1]]
            return JobFigures(
                by_state={state: ends[state] for state in STATES},
                oldest_queued_s=max(0.0, time.time() - min(waiting)) if waiting else 0.0,
                running=tuple(running),
                workers=self._workers(),
            )

    def close(self) -> None:
        """Disconnects."""
        self._redis.close()

    def _records(self, job_ids: list[str]) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(job_ids), _CHUNK):
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids[start : start + _CHUNK]:
                    pipeline.hmget(keys.job_key(job_id), *_FIELDS)
                found += [[value or "" for value in record] for record in pipeline.execute()]
        return found

    def _running(self, job_id: str, record: list[str]) -> RunningJob:
        _, _, _, kind, name, done, stage, message = record
        speed = cast("str | None", self._redis.hget(keys.metrics_key(job_id), SPEED))
        return RunningJob(job_id, kind, name, stage, message, float(done or 0), None if speed is None else float(speed))

    def _workers(self) -> tuple[WorkerNote, ...]:
        notes = cast("dict[str, str]", self._redis.hgetall(keys.JOB_WORKERS))
        found = [WorkerNote.of(note) for _, note in sorted(notes.items())]
        return tuple(note for note in found if note.at > time.time() - keys.WORKER_NOTE_S)


class JobCollector(Collector):
    """The figures as Prometheus reads them; asked anew at each reading."""

    def __init__(self, jobs: JobCounter) -> None:
        self._jobs = jobs

    def describe(self) -> list[Metric]:
        """Nothing: the registry must not ask the queue while the server starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics; only `crosscope_queue_up` while the queue is away."""
        up = GaugeMetricFamily("crosscope_queue_up", "Whether the job queue answers")
        try:
            found = self._jobs.count()
        except RedisError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        states = GaugeMetricFamily("crosscope_jobs", "Jobs by state", labels=["state"])
        for state, number in found.by_state.items():
            states.add_metric([state], number)
        yield states
        yield GaugeMetricFamily(
            "crosscope_job_queue_oldest_seconds", "How long the oldest queued job waits", found.oldest_queued_s
        )
        yield GaugeMetricFamily("crosscope_job_workers", "Job workers that listen", len(found.workers))
        labels = ["job", "kind", "name"]
        done = GaugeMetricFamily("crosscope_job_progress_ratio", "Share of a running job that is done", labels=labels)
        speed = GaugeMetricFamily("crosscope_job_tokens_per_second", "Speed of a running training", labels=labels)
        for job in found.running:
            done.add_metric([job.id, job.kind, job.name], job.done)
            if job.tokens_per_s is not None:
                speed.add_metric([job.id, job.kind, job.name], job.tokens_per_s)
        yield done
        yield speed
