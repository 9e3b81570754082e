"""An attempt's claim on its job, and its reports: the job's side of `crosscope_proto.job_record`.

Every call waits for Redis if it is away, up to a limit. Knows nothing about RQ or about the work of the job.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from crosscope_proto import job_record, keys, request_ids
from crosscope_worker.work import LostClaim, Stopped

T = TypeVar("T")

MAX_MESSAGE = 1000
"""Maximum length of a job's or event's message, in characters."""
_RETRY_S = 0.5
_CANNOT_WRITE = ("MISCONF", "OOM", "READONLY")
"""How Redis refuses a command while its disk or memory is full."""


class QueueAway(Stopped):
    """Redis did not answer, or could not write, for longer than the limit."""


@dataclass(frozen=True)
class News:
    """The news since the last report: fields and their values."""

    events: Sequence[Mapping[str, str]]
    latest: Mapping[str, str]
    metrics: Mapping[str, str]
    stages: Mapping[str, str]


@dataclass(frozen=True)
class Standing:
    """Whether the attempt still holds the job, and whether it should stop."""

    holds: bool
    """Whether the job still belongs to this attempt."""
    cancelled: bool
    """Whether someone asked the job to stop."""


@dataclass(frozen=True)
class Task:
    """The task of an attempt."""

    recipe: str
    """YAML."""
    attempt: int
    """The attempt's number, from 1."""
    folder: str
    """The folder from which the job was submitted; empty if unknown."""
    done: float
    """The share of the job that earlier attempts completed."""
    seconds: Mapping[str, float]
    """How long each stage is expected to take; empty if unknown."""
    request_id: str = ""
    """Id of the call that submitted the job; empty if unknown."""


class Claim:
    """One attempt's claim on one job."""

    def __init__(self, redis: Redis, job_id: str, claim: str) -> None:
        """`redis` must decode responses to str."""
        self._redis, self._job_id, self._claim = redis, job_id, claim
        self._keys = [keys.job_key(job_id), keys.events_key(job_id)]
        self._report = redis.register_script(job_record.REPORT)
        self._finish = redis.register_script(job_record.FINISH)

    def task(self, wait_s: float, give_up: Callable[[], bool]) -> Task:
        """The task of this attempt.

        Raises QueueAway if Redis does not answer within `wait_s` or before `give_up` says yes.
        """

        def ask() -> Task:
            names = ("recipe", "attempt", "folder", "total_fraction", "seconds", request_ids.FACT)
            recipe, attempt, folder, done, seconds, request_id = cast(
                "list[str | None]", self._redis.hmget(self._keys[0], *names)
            )
            return Task(
                recipe or "",
                int(attempt or 1),
                folder or "",
                float(done or 0),
                json.loads(seconds or "{}"),
                request_id or "",
            )

        return patiently(ask, wait_s, give_up)

    def report(self, news: News) -> Standing:
        """Adds news to the job's record. Raises redis.RedisError at once if Redis is away."""
        record_keys = [*self._keys, keys.metrics_key(self._job_id), keys.stages_key(self._job_id)]
        document = {
            "events": [_flat(event) for event in news.events],
            "latest": _flat(news.latest),
            "metrics": _flat(news.metrics),
            "stages": _flat(news.stages),
        }
        reply = self._report(keys=record_keys, args=[self._claim, keys.EVENTS_MAXLEN, json.dumps(document)])
        held, cancel_at = cast("list[str]", reply)
        return Standing(held == "ok", bool(cancel_at))

    def standing(self, wait_s: float, give_up: Callable[[], bool]) -> Standing:
        """The current standing of the attempt.

        Raises QueueAway if Redis does not answer within `wait_s` or before `give_up` says yes.
        """

        def ask() -> Standing:
            claim, cancel_at = cast("list[str | None]", self._redis.hmget(self._keys[0], "claim", "cancel_at"))
            return Standing(claim == self._claim, bool(cancel_at))

        return patiently(ask, wait_s, give_up)

    def finish(self, end: str, message: str, version_id: str, wait_s: float, give_up: Callable[[], bool]) -> None:
        """Ends the job.

        Raises LostClaim if the job no longer belongs to this attempt, and QueueAway as `standing` does.
        """

        def end_it() -> Any:
            arguments = [self._claim, repr(time.time()), end, as_message(message), version_id]
            return self._finish(keys=self._keys, args=arguments)

        if patiently(end_it, wait_s, give_up) != "ok":
            raise LostClaim(f"another attempt has taken over job {self._job_id}")


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def as_message(text: str) -> str:
    """The text in a form that can be stored and shown: valid Unicode, of limited length."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def is_passing(error: RedisError) -> bool:
    """Whether Redis may answer the same call later."""
    if isinstance(error, ResponseError):
        return str(error).startswith(_CANNOT_WRITE)
    return isinstance(error, (RedisConnectionError, RedisTimeoutError))


def patiently(ask: Callable[[], T], wait_s: float, give_up: Callable[[], bool]) -> T:
    """The result of `ask`, which is called again while Redis is away.

    Raises QueueAway if Redis stays away longer than `wait_s` or until `give_up` says yes.
    """
    begun = time.monotonic()
    while True:
        try:
            return ask()
        except RedisError as error:
            if not is_passing(error):
                raise
            waited_s = time.monotonic() - begun
            if give_up() or waited_s >= wait_s:
                raise QueueAway(f"the job queue has not answered for {waited_s:.0f} s: {error}") from error
        time.sleep(_RETRY_S)
