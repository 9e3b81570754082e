"""Jobs as they stand in Redis, and the transitions that the server makes.

Reads and changes records only through `crosscope_proto.job_record`. Knows nothing about RQ or gRPC.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from redis.asyncio import Redis

from crosscope_proto import job_record, keys
from crosscope_proto.job_record import WorkerNote


class JobState(Enum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = job_record.SUCCEEDED
    FAILED = job_record.FAILED
    CANCELLED = job_record.CANCELLED

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more, unless somebody retries it."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class JobRecord:
    """A job as its record says. Times are in seconds since 1970; 0 means not yet."""

    id: str
    kind: str
    name: str
    recipe: str
    after: tuple[str, ...]
    claim: str
    """Id of the attempt that runs it; empty if none does."""
    end: str
    stage: str
    fraction: float
    message: str
    attempt: int
    created_at: float
    started_at: float
    ended_at: float
    cancel_at: float
    version_id: str
    folder: str = ""
    """The folder from which it was submitted; empty if unknown."""
    seconds: str = ""
    """JSON: how long each stage is expected to take; empty if unknown."""
    owner: str = ""
    """Name of the token that submitted it; empty where callers have no names."""
    request_id: str = ""
    """Id of the call that submitted it; empty if unknown."""
    traceparent: str = ""
    total_fraction: float = 0.0
    eta_s: float = 0.0
    num_devices: float = 0.0
    """How many devices it holds at once; 0 counts as one."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> JobState:
        """The job's state, which follows from `claim` and `end`."""
        if self.end:
            return JobState(self.end)
        return JobState.RUNNING if self.claim else JobState.QUEUED


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    id: str
    at: float
    stage: str
    fraction: float
    message: str
    step: int
    metrics: Mapping[str, float]
    rel_norms: Sequence[int] = ()
    """Latents in bins of relative norm, from 0 to 1; empty where it was not measured."""


class JobRecords:
    """The records of all jobs in one Redis. Every method raises redis.RedisError when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        """`redis` must decode responses to str."""
        self._redis = redis
        self._submit = redis.register_script(job_record.SUBMIT)
        self._cancel = redis.register_script(job_record.CANCEL)
        self._end_queued = redis.register_script(job_record.END_QUEUED)
        self._release = redis.register_script(job_record.RELEASE)
        self._retry = redis.register_script(job_record.RETRY)
        self._close = redis.register_script(job_record.CLOSE)

    async def submit(
        self, job_id: str, values: Mapping[str, str], after: Sequence[str], idempotency_key: str, max_open: int
    ) -> str:
        """Records a new job and returns its id. If the idempotency key is known, returns the id of its first job.

        Returns "" if `max_open` jobs are open already.
        """
        now = repr(time.time())
        fields = {**values, job_record.AFTER: json.dumps(list(after)), "created_at": now}
        submission = keys.idempotency_key(idempotency_key or job_id)
        record_keys = [*_record_keys(job_id), submission, keys.JOB_INDEX, keys.OPEN_JOBS]
        flat = [part for pair in fields.items() for part in pair]
        arguments = [job_id, keys.IDEMPOTENCY_TTL_S, now, "Queued.", max_open, *flat]
        made = await self._submit(keys=record_keys, args=arguments, client=self._redis)
        return cast("str", made)

    async def submitted(self, idempotency_key: str) -> bool:
        """Whether a submission with this key has made a job."""
        return bool(idempotency_key) and bool(await self._redis.exists(keys.idempotency_key(idempotency_key)))

    async def spent_s(self, owner: str, at: float) -> float:
        """Seconds of devices that a submitter's attempts took that have ended on the day of `at` (UTC)."""
        return float(cast("str | None", await self._redis.get(keys.spent_key(owner, at))) or 0)

    async def get(self, job_id: str) -> JobRecord | None:
        """One job; None if there is none with this id."""
        return (await self.get_all([job_id]))[0]

    async def get_all(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Jobs in the order of their ids; None for an unknown id."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(keys.job_key(job_id))
                pipeline.hgetall(keys.metrics_key(job_id))
                pipeline.hgetall(keys.stages_key(job_id))
            replies = cast("list[dict[str, str]]", await pipeline.execute())
        return [
            _record(job_id, *replies[3 * i : 3 * i + 3]) if replies[3 * i] else None for i, job_id in enumerate(job_ids)
        ]

    async def newest(self, limit: int) -> list[JobRecord]:
        """At most `limit` jobs, newest first."""
        job_ids = cast("list[str]", await self._redis.zrevrange(keys.JOB_INDEX, 0, limit - 1))
        return [record for record in await self.get_all(job_ids) if record is not None]

    async def open_ids(self) -> list[str]:
        """Ids of the jobs that the janitor still looks after."""
        return sorted(cast("set[str]", await _await(self._redis.smembers(keys.OPEN_JOBS))))

    async def num_open(self) -> int:
        """How many jobs wait or run, or have just ended."""
        return cast("int", await _await(self._redis.scard(keys.OPEN_JOBS)))

    async def close(self, job_id: str) -> bool:
        """Takes an ended job off the janitor's list; False if somebody has just retried it."""
        done = await self._close(keys=[keys.job_key(job_id), keys.OPEN_JOBS], args=[job_id], client=self._redis)
        return cast("str", done) == "ok"

    async def retry(self, job_id: str, message: str) -> str:
        """Lets a job that failed or was cancelled wait again; returns what job_record.RETRY says."""
        names = [*_record_keys(job_id), keys.OPEN_JOBS]
        done = await self._retry(keys=names, args=[repr(time.time()), job_id, message], client=self._redis)
        return cast("str", done)

    async def events(self, job_id: str, after_event: str, limit: int = 500) -> list[Event]:
        """At most `limit` events after the given one ("0": from the first)."""
        stream = keys.events_key(job_id)
        reply: Any = await self._redis.xread({stream: after_event}, count=limit)
        entries = reply.get(stream, [[]])[0] if isinstance(reply, dict) else (reply[0][1] if reply else [])
        return [_event(event_id, fields) for event_id, fields in entries]

    async def workers(self) -> list[WorkerNote]:
        """What the job workers that listen now say of themselves; those that have gone are forgotten."""
        notes = cast("dict[str, str]", await _await(self._redis.hgetall(keys.JOB_WORKERS)))
        found = {name: WorkerNote.of(note) for name, note in sorted(notes.items())}
        since = time.time() - keys.WORKER_NOTE_S
        if gone := [name for name, note in found.items() if note.at < since]:
            await _await(self._redis.hdel(keys.JOB_WORKERS, *gone))
        return [note for name, note in found.items() if name not in gone]

    async def cancel(self, job_id: str) -> str:
        """Asks a job to stop; returns what job_record.CANCEL says."""
        return cast("str", await self._cancel(keys=_record_keys(job_id), args=[repr(time.time())], client=self._redis))

    async def end_queued(self, job_id: str, end: JobState, message: str) -> None:
        """Ends a job unless an attempt runs it or it has ended."""
        arguments = [repr(time.time()), end.value, message]
        await self._end_queued(keys=_record_keys(job_id), args=arguments, client=self._redis)

    async def release(self, job_id: str, claim: str, message: str, last_message: str) -> str:
        """Gives back a job whose worker died; returns what job_record.RELEASE says."""
        arguments = [claim, repr(time.time()), message, last_message, job_record.MAX_CRASHES]
        return cast("str", await self._release(keys=_record_keys(job_id), args=arguments, client=self._redis))

    async def trim(self) -> None:
        """Forgets the oldest jobs beyond keys.MAX_JOBS. Jobs that have not ended stay."""
        surplus = await _await(self._redis.zcard(keys.JOB_INDEX)) - keys.MAX_JOBS
        if surplus <= 0:
            return
        oldest = cast("list[str]", await self._redis.zrange(keys.JOB_INDEX, 0, surplus - 1))
        for record in await self.get_all(oldest):
            if record is not None and record.state.ended:
                names = (keys.job_key, keys.events_key, keys.metrics_key, keys.stages_key)
                await self._redis.delete(*(name(record.id) for name in names))
                await self._redis.zrem(keys.JOB_INDEX, record.id)

    async def forget_submission(self, idempotency_key: str) -> None:
        """Frees an idempotency key whose job is gone."""
        await self._redis.delete(keys.idempotency_key(idempotency_key))

    async def run_id(self) -> str:
        """An id of the running Redis; it changes whenever Redis starts."""
        info = await self._redis.info("server")
        return str(info["run_id"])


def is_event_id(text: str) -> bool:
    """Whether a text looks like the id of an event: one or two 64-bit numbers, as Redis writes them."""
    if not re.fullmatch(r"[0-9]{1,20}(-[0-9]{1,20})?", text):
        return False
    return all(int(part) < 2**64 for part in text.split("-"))


async def _await(value: Any) -> Any:  # in the types of redis-py, commands may be awaitable or not
    return await value


def _record_keys(job_id: str) -> list[str]:
    return [keys.job_key(job_id), keys.events_key(job_id)]


def _record(job_id: str, fields: dict[str, str], metrics: dict[str, str], stages: dict[str, str]) -> JobRecord:
    texts = {name: fields.get(name, "") for name in job_record.TEXT_FIELDS}
    numbers = {name: float(fields.get(name) or 0) for name in job_record.NUMBER_FIELDS if name != "crashes"}
    if texts["end"] == job_record.SUCCEEDED:
        numbers["total_fraction"] = 1.0  # Older records of jobs that succeeded do not have it.
    return JobRecord(
        id=job_id,
        after=tuple(json.loads(fields.get(job_record.AFTER, "[]"))),
        attempt=int(numbers.pop("attempt")),
        metrics={name: float(value) for name, value in metrics.items()},
        stage_seconds={name: float(value) for name, value in stages.items()},
        **cast("Any", texts | numbers),
    )


def _event(event_id: str, fields: dict[str, str]) -> Event:
    return Event(
        id=event_id,
        at=float(fields["at"] or 0),
        stage=fields["stage"],
        fraction=float(fields["fraction"] or 0),
        message=fields["message"],
        step=int(fields["step"] or 0),
        metrics=json.loads(fields["metrics"]),
        rel_norms=json.loads(fields.get("rel_norms") or "[]"),
    )
