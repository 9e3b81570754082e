"""The queue of job ids, on RQ. The one module of the server that imports rq.

RQ says only which job is next and which jobs have a lease. What a job is, and its state, are in its record. Knows
nothing about records, recipes or gRPC. All calls block: make them off the event loop.
"""

import time
from collections.abc import Sequence
from typing import cast

from redis import Redis
from rq import Queue
from rq.job import Dependency, Job
from rq.serializers import JSONSerializer

from crosscope_proto import keys

KEEP_S = 3600
"""How long RQ keeps its own note of an ended job."""


class JobQueue:
    """Ids of jobs, in the order in which workers take them. Methods raise redis.RedisError when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        """`redis` must not decode responses."""
        self._redis = redis
        self._queue = Queue(keys.JOB_QUEUE, connection=redis, serializer=JSONSerializer)
        self._running = self._queue.started_job_registry

    def enqueue(self, job_id: str, after: Sequence[str] = ()) -> None:
        """Puts a job at the end of the queue; with `after`, as soon as those jobs have succeeded.

        If RQ does not know one of them, nothing is queued: the janitor queues the job when all have succeeded.
        """
        if all(Job.exists(other, connection=self._redis) for other in after):
            self._queue.enqueue_job(self._new_job(job_id, after))

    def requeue(self, job_id: str) -> None:
        """Puts a job at the front, unless it is in the queue. Its leases and places in RQ's registries go."""
        if self._queue.get_job_position(job_id) is None:
            self._forget_places(job_id)
            self._queue.enqueue_job(self._new_job(job_id), at_front=True)

    def again(self, job_id: str, after: Sequence[str] = ()) -> None:
        """Puts an ended job at the end of the queue, like a new one."""
        self.remove(job_id)
        self.enqueue(job_id, after)

    def remove(self, job_id: str) -> None:
        """Forgets a job, its leases included."""
        self._forget_places(job_id)
        self._redis.lrem(self._queue.key, 0, job_id)
        self._redis.delete(Job.key_for(job_id), Job.dependents_key_for(job_id), f"{Job.key_for(job_id)}:dependencies")

    def waiting(self) -> list[str]:
        """Ids of the jobs in the queue, the next one first."""
        return self._queue.job_ids

    def leased(self) -> set[str]:
        """Ids of the jobs whose worker has renewed its lease within keys.LEASE_S.

        A lease that lasts much longer was given by a clock that has been set back since.
        """
        now = time.time()
        return {_job_of(entry) for entry, until in self._leases().items() if now < until < now + 2 * keys.LEASE_S}

    def _leases(self) -> dict[str, float]:
        entries = cast("list[tuple[bytes, float]]", self._redis.zrange(self._running.key, 0, -1, withscores=True))
        return {entry.decode(): until for entry, until in entries}

    def _forget_places(self, job_id: str) -> None:
        queue = self._queue
        for entry in self._leases():
            if _job_of(entry) == job_id:
                self._redis.zrem(self._running.key, entry)
        self._redis.lrem(queue.intermediate_queue_key, 0, job_id)
        for registry in (queue.deferred_job_registry, queue.failed_job_registry, queue.finished_job_registry):
            self._redis.zrem(registry.key, job_id)

    def _new_job(self, job_id: str, after: Sequence[str] = ()) -> Job:
        return self._queue.create_job(
            keys.JOB_ENTRY,
            args=(job_id,),
            job_id=job_id,
            timeout=-1,
            result_ttl=KEEP_S,
            failure_ttl=KEEP_S,
            description=job_id,
            depends_on=Dependency(jobs=list(after)) if after else None,
        )


def _job_of(lease: str) -> str:
    return lease.partition(":")[0]
