"""Finds jobs that nobody looks after any more, and repairs them. No other module repairs jobs.

It queues a job again if its worker died. It ends a job if a job before it did not succeed. It queues a job that has a
record but is not in the queue, because a process died in between. Knows nothing about gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from redis.exceptions import RedisError

from crosscope_proto.job_record import MAX_CRASHES
from crosscope_proto.keys import LEASE_S
from crosscope_server.jobs.queue import JobQueue
from crosscope_server.jobs.records import JobRecord, JobRecords, JobState

STALL_S = 3.0
"""A queue, or a janitor, that takes this much longer than usual has stood still."""

log = logging.getLogger(__name__)


class Janitor:
    """Looks after the open jobs. Several may run; every repair is one atomic step."""

    def __init__(
        self, records: JobRecords, queue: JobQueue, *, interval_s: float = 2, grace_s: float = 15, settle_s: float = 5
    ) -> None:
        """Takes what it looks after, and its times.

        After a start or a stall of Redis, a start of its own or a pause, it waits `grace_s`, so that workers can renew
        their leases. A job must look lost for `settle_s` before it is queued again.
        """
        self._records, self._queue = records, queue
        self._interval_s, self._grace_s, self._settle_s = interval_s, grace_s, settle_s
        self._redis_run = ""
        self._looked_at = self._quiet_until = self._forgive_until = float("-inf")
        self._clock_ahead = 0.0
        """By how much the clock of leases, seconds since 1970, is ahead of the one that never jumps."""
        self._lost_since: dict[str, float] = {}

    async def run(self) -> None:
        """Looks every `interval_s`, for ever; waits while Redis is away."""
        away = False
        while True:
            try:
                await self.look()
                away = False
            except RedisError as error:
                if not away:
                    log.warning("janitor: queue is away", extra={"error": str(error)})
                away = True
            except Exception:  # one job's odd record must not end the care for the others
                log.exception("janitor: bug")
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Looks once at every open job."""
        began = time.monotonic()
        run_id = await self._records.run_id()
        job_ids = await self._records.open_ids()
        waiting = set(await asyncio.to_thread(self._queue.waiting))
        leased = await asyncio.to_thread(self._queue.leased)
        self._notice_pauses(run_id, began)
        now = time.time()
        found = dict(zip(job_ids, await self._records.get_all(job_ids), strict=True))
        before = {job_id: await self._predecessors(record, found) for job_id, record in found.items()}
        for job_id, record in found.items():
            if record is None:
                await self._records.close(job_id)
            elif record.state.ended:
                await self._tidy(record, job_id in leased, now)
            elif record.state is JobState.RUNNING:
                if job_id not in leased and time.monotonic() > self._quiet_until:
                    await self._revive(record)
            elif not await self._end_if_blocked(record, before[job_id]):
                ready = all(other.state is JobState.SUCCEEDED for other in before[job_id].values() if other)
                await self._requeue_if_lost(record, ready and job_id not in leased | waiting, now)
        self._lost_since = {job_id: since for job_id, since in self._lost_since.items() if job_id in found}
        await self._records.trim()

    def _notice_pauses(self, run_id: str, began: float) -> None:
        """Notes when leases may have lapsed though no worker died: something stood still, or a clock jumped.

        Redis or this process stood still if a look took long, or came late after the one before; looks that Redis does
        not answer are late too.
        """
        now, ahead = time.monotonic(), time.time() - time.monotonic()
        stalled = now - began > STALL_S or began - self._looked_at > self._interval_s + STALL_S
        jumped = abs(ahead - self._clock_ahead) > STALL_S
        is_same_run = run_id == self._redis_run
        if stalled or jumped or not is_same_run:
            self._quiet_until = now + self._grace_s
        if is_same_run and (stalled or jumped):
            self._forgive_until = now + self._grace_s + LEASE_S
            what = "janitor: the clock jumped" if jumped else "janitor: the queue or this process stood still"
            log.warning(what, extra={"since_last_look_s": round(now - self._looked_at, 1)})
        self._redis_run, self._looked_at, self._clock_ahead = run_id, now, ahead

    async def _predecessors(
        self, record: JobRecord | None, known: Mapping[str, JobRecord | None]
    ) -> dict[str, JobRecord | None]:
        if record is None or record.state is not JobState.QUEUED:
            return {}
        missing = [other for other in record.after if other not in known]
        fetched = dict(zip(missing, await self._records.get_all(missing), strict=True)) if missing else {}
        return {other: fetched[other] if other in fetched else known[other] for other in record.after}

    async def _tidy(self, record: JobRecord, leased: bool, now: float) -> None:
        """Closes an ended job as soon as RQ has had time to finish with it."""
        # Close first. If the job is retried right after, it is open again, and is queued again if it must be.
        if not leased and now - record.ended_at > self._grace_s and await self._records.close(record.id):
            await asyncio.to_thread(self._queue.remove, record.id)

    async def _revive(self, record: JobRecord) -> None:
        """Queues a job again whose lease has lapsed. That counts as a death unless the queue has just stood still."""
        is_forgiven = time.monotonic() < self._forgive_until
        log.warning(
            "janitor: lease of job has lapsed",
            extra={"job": record.id, "attempt": record.attempt, "counts": not is_forgiven},
        )
        message = "Its worker died or stood still; it will be resumed."
        if is_forgiven:
            message = "The job queue stood still and its worker lost touch; it will be resumed."
        last = f"Given up after its process or worker died {MAX_CRASHES} times; see the worker's log."
        done = await self._records.release(record.id, record.claim, message, "" if is_forgiven else last)
        if done == "ok":
            await asyncio.to_thread(self._queue.requeue, record.id)

    async def _end_if_blocked(self, record: JobRecord, before: Mapping[str, JobRecord | None]) -> bool:
        for job_id, other in before.items():
            if other is None:
                await self._end(record, JobState.FAILED, f"Not started: job {job_id}, which it waits for, is gone.")
                return True
            if other.state in (JobState.FAILED, JobState.CANCELLED):
                name = f"{other.kind} {other.name!r} (job {job_id})"
                verb = "failed" if other.state is JobState.FAILED else "was cancelled"
                await self._end(record, other.state, f"Not started: {name}, which it waits for, {verb}.")
                return True
        return False

    async def _end(self, record: JobRecord, end: JobState, message: str) -> None:
        await self._records.end_queued(record.id, end, message)
        await asyncio.to_thread(self._queue.remove, record.id)

    async def _requeue_if_lost(self, record: JobRecord, lost: bool, now: float) -> None:
        if not lost:
            self._lost_since.pop(record.id, None)
        elif now - self._lost_since.setdefault(record.id, now) > self._settle_s:
            log.warning("janitor: job was neither queued nor running", extra={"job": record.id})
            await asyncio.to_thread(self._queue.requeue, record.id)
            self._lost_since.pop(record.id)
