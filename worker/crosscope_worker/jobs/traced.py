"""The span of one attempt at a job, below the call that submitted it. Reads the job's record and changes nothing."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from crosscope_proto import keys, request_ids
from crosscope_proto.tracing import TRACEPARENT, Span, span


@contextmanager
def attempt_span(redis: Redis, job_id: str) -> Generator[Span]:
    """A span around an attempt, with the seconds of its stages; log lines inside have the submission's request id.

    Raises redis.RedisError if the queue is away at its beginning.
    """
    fields = ("kind", "name", "attempt", request_ids.FACT, TRACEPARENT)
    record = cast("list[bytes | None]", redis.hmget(keys.job_key(job_id), *fields))
    kind, name, attempt, request_id, parent = ((value or b"").decode() for value in record)
    request_ids.set_current(request_id)
    facts = {"job": job_id, "kind": kind, "name": name, "attempt": int(attempt or 1), "request_id": request_id}
    try:
        with span(f"job {kind}", "consumer", parent=parent) as current:
            current.set(**facts)
            yield current
            if current.traceparent:
                with suppress(RedisError):  # the figures are missing then, and nothing else
                    stages = cast("dict[bytes, bytes]", redis.hgetall(keys.stages_key(job_id)))
                    current.set(**{f"stage.{stage.decode()}_s": float(took) for stage, took in stages.items()})
    finally:
        request_ids.set_current("")
