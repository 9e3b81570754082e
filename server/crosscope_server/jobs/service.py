"""The Jobs service: decode, call, reply. Knows nothing about RQ, Lua or how jobs run."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

import asyncio
import contextlib
import functools
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from crosscope_proto import request_ids, tracing
from crosscope_proto.recipe import Recipe, recipe_schema
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc
from crosscope_server.callers import calling
from crosscope_server.errors import Conflict, InvalidRequest, NotFound, Overloaded, Unavailable, Violation
from crosscope_server.jobs.check import Findings, check
from crosscope_server.jobs.connections import Connections, end_task, queue_needed
from crosscope_server.jobs.estimate import Target
from crosscope_server.jobs.expected import expected_seconds
from crosscope_server.jobs.janitor import Janitor
from crosscope_server.jobs.log import DEFAULT_LINES, read_tail
from crosscope_server.jobs.messages import event_message, job_message
from crosscope_server.jobs.owners import check_limits, check_owner, num_devices, owner_of
from crosscope_server.jobs.plan import Planned, plan
from crosscope_server.jobs.planning import earlier_entries, named_target, reply, targets_of
from crosscope_server.jobs.queue import JobQueue
from crosscope_server.jobs.recipes import RecipeReader
from crosscope_server.jobs.records import JobRecord, JobRecords, JobState, is_event_id
from crosscope_server.jobs.watchers import Watchers
from crosscope_server.quota import Quota
from crosscope_store.shelf import ALONE, Shelf

T = TypeVar("T")

DEFAULT_LIMIT = 50
DEFAULT_MAX_OPEN = 1000
LOOK_BACK = 200
"""Jobs among which a plan looks for an earlier one of the same kind and name."""
MAX_LIST_BYTES = 3 * 1024 * 1024
"""A longer list of jobs is sent without recipes, so that it fits into gRPC's 4 MiB."""
_GLANCE_S = 0.3
"""How long a call waits for what it can do without, where the queue stalls."""

_NOT_RETRIED = {
    "unknown": "is gone: submit its recipe again",
    "running": "is running: cancel it first, or wait until it has ended",
    "succeeded": "has succeeded, and there is nothing to retry: submit its recipe again to make another version",
    "gone": "has no checkpoints any more, because they expire after some days: submit its recipe again",
}
"""Why a job is not queued again, by what job_record.RETRY says."""


@contextlib.asynccontextmanager
async def jobs_service(
    queue_url: str | None, home: Path, quota: Quota, max_open: int = DEFAULT_MAX_OPEN, shelf: Shelf = ALONE
) -> AsyncGenerator["JobsService"]:
    """The servicer on the queue at `queue_url` (redis:// or unix://), while its janitor runs.

    Recipes are checked against the files below `home`, the artefact folder, which may hold what `quota` says. At most
    `max_open` jobs wait or run. The service starts even if the queue does not answer. Without a URL every call ends
    with UNAVAILABLE.
    """
    if queue_url is None:
        service = JobsService(None, None, home, quota, None)
        try:
            yield service
        finally:
            service.close()
        return
    async with contextlib.AsyncExitStack() as stack:
        connections = Connections(queue_url)
        stack.push_async_callback(connections.close)
        watchers = Watchers(connections.watching)
        stack.push_async_callback(watchers.close)
        service = JobsService(
            JobRecords(connections.calls), JobQueue(connections.calls_blocking), home, quota, watchers, max_open, shelf
        )
        stack.callback(service.close)
        janitor = Janitor(JobRecords(connections.janitor), JobQueue(connections.janitor_blocking))
        stack.push_async_callback(end_task, asyncio.create_task(janitor.run(), name="janitor"))
        yield service


class JobsService(jobs_pb2_grpc.JobsServicer):
    """Queues and follows jobs."""

    def __init__(
        self,
        records: JobRecords | None,
        queue: JobQueue | None,
        home: Path,
        quota: Quota,
        watchers: Watchers | None,
        max_open: int = DEFAULT_MAX_OPEN,
        shelf: Shelf = ALONE,
    ) -> None:
        self._home, self._quota, self._max_open, self._shelf = home, quota, max_open, shelf
        self._maybe_records, self._maybe_queue, self._maybe_watchers = records, queue, watchers
        self._recipes = RecipeReader()
        self._admitting = asyncio.Lock()
        """Held from the look at a caller's limits until their job is recorded."""
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="queue")
        """For calls that block on the queue, so that a queue that stalls takes no thread of others."""

    def close(self) -> None:
        """Ends its threads."""
        self._recipes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _blocking(self, call: Callable[..., T], *arguments: Any) -> T:
        """The result of a call that blocks on the queue."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    @property
    def _records(self) -> JobRecords:
        if self._maybe_records is None:
            raise Unavailable("this server has no job queue: start it with CROSSCOPE_SERVER_QUEUE_URL")
        return self._maybe_records

    @property
    def _queue(self) -> JobQueue:
        if self._maybe_queue is None:
            raise Unavailable("this server has no job queue: start it with CROSSCOPE_SERVER_QUEUE_URL")
        return self._maybe_queue

    @property
    def _watchers(self) -> Watchers:
        if self._maybe_watchers is None:
            raise Unavailable("this server has no job queue: start it with CROSSCOPE_SERVER_QUEUE_URL")
        return self._maybe_watchers

    async def SubmitJob(
        self, request: jobs_pb2.SubmitJobRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.SubmitJobResponse:
        """Checks a recipe and queues it."""
        recipe = await self._recipes.read(request.recipe_yaml)
        values = {"kind": recipe.kind, "name": recipe.name, "recipe": request.recipe_yaml, "folder": request.folder}
        values["owner"] = owner_of(calling())
        found = await asyncio.to_thread(check, recipe, self._home, after_others=bool(request.after), shelf=self._shelf)
        targets, before = await self._known([])
        planned = await self._planned(recipe, found, targets)
        seconds = expected_seconds(recipe, request.recipe_yaml, before, planned.devices)
        values |= {request_ids.FACT: request_ids.current(), tracing.TRACEPARENT: tracing.current_traceparent()}
        values["seconds"] = json.dumps(seconds) if seconds else ""
        values["num_devices"] = str(num_devices(recipe, targets))
        warnings = [*found.warnings, *planned.warnings]
        if request.validate_only:
            if found.violations:
                raise InvalidRequest(found.violations)
            job = jobs_pb2.Job(kind=recipe.kind, name=recipe.name, recipe_yaml=request.recipe_yaml)
            return jobs_pb2.SubmitJobResponse(job=job, warnings=warnings)
        # What is missing now may exist when the job runs, so the job is queued all the same.
        warnings = [*(f"{each.field}: {each.sentence}" for each in found.violations), *warnings]
        async with queue_needed():
            waits_for = await self._unfinished(list(dict.fromkeys(request.after)))
            async with self._admitting:
                if not await self._records.submitted(request.idempotency_key):
                    await self._quota.check()
                    await check_limits(self._records, calling())
                after = list(dict.fromkeys(request.after))
                job_id = await self._submit(values, after, waits_for, request.idempotency_key)
            return jobs_pb2.SubmitJobResponse(job=await self._job(job_id), warnings=warnings)

    async def PlanJob(
        self, request: jobs_pb2.PlanJobRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.PlanJobResponse:
        """Checks a recipe and says what its job would take."""
        targets = [named_target(request.device)] if request.device else []
        recipe = await self._recipes.read(request.recipe_yaml)
        found = await asyncio.to_thread(check, recipe, self._home, after_others=bool(request.after), shelf=self._shelf)
        if found.violations:
            raise InvalidRequest(found.violations)
        targets, before = await self._known(targets)
        planned = await self._planned(recipe, found, targets)
        return reply(recipe, request.recipe_yaml, planned, earlier_entries(before, recipe), found.warnings)

    async def _planned(self, recipe: Recipe, found: Findings, targets: Sequence[Target]) -> Planned:
        held = await self._quota.held()
        return await asyncio.to_thread(plan, recipe, found, self._home, targets, held and held.left_bytes)

    async def _known(self, targets: list[Target]) -> tuple[list[Target], list[JobRecord]]:
        """The devices to plan for, those of the job workers unless `targets` are given, and the newest jobs.

        Nothing of both while the queue does not answer: a plan can do without.
        """
        with contextlib.suppress(Unavailable):
            async with queue_needed(_GLANCE_S):
                targets = targets or targets_of(await self._records.workers())
                return targets, await self._records.newest(LOOK_BACK)
        return targets, []

    async def GetJob(
        self, request: jobs_pb2.GetJobRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.GetJobResponse:
        """One job as it stands."""
        async with queue_needed():
            return jobs_pb2.GetJobResponse(job=await self._job(request.id))

    async def ListJobs(
        self, request: jobs_pb2.ListJobsRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.ListJobsResponse:
        """Jobs, newest first."""
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        async with queue_needed():
            records = await self._records.newest(limit)
            waiting = await self._waiting(records)
        jobs = [job_message(record, waiting) for record in records]
        if request.without_recipes or sum(job.ByteSize() for job in jobs) > MAX_LIST_BYTES:
            for job in jobs:
                job.ClearField("recipe_yaml")
        return jobs_pb2.ListJobsResponse(jobs=jobs)

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        """Follows a job until it has ended."""
        after = request.after_event or "0"
        if not is_event_id(after):
            text = f"must be the id of one of the job's events, but is {after!r}"
            raise InvalidRequest([Violation("after_event", text)])
        last = None
        async with self._watchers.watching(request.id) as watched:
            while True:
                seen = watched.version
                async with self._watchers.turn(), queue_needed():
                    job = await self._job(request.id)
                    if events := await self._records.events(request.id, after):
                        job = await self._job(request.id)
                if last is not None:
                    job.ClearField("recipe_yaml")
                if events or job != last:
                    yield jobs_pb2.WatchJobResponse(job=job, events=[event_message(event) for event in events])
                    job.ClearField("recipe_yaml")
                if events:
                    after = events[-1].id
                elif job.ended_at > 0:
                    return
                else:
                    await watched.change(seen)
                last = job

    async def CancelJob(
        self, request: jobs_pb2.CancelJobRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.CancelJobResponse:
        """Asks a job to stop."""
        async with queue_needed():
            if (record := await self._records.get(request.id)) is not None:
                check_owner(record, calling())
            if await self._records.cancel(request.id) == "ok":
                await self._blocking(self._queue.remove, request.id)
            return jobs_pb2.CancelJobResponse(job=await self._job(request.id))

    async def RetryJob(
        self, request: jobs_pb2.RetryJobRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.RetryJobResponse:
        """Queues a failed or cancelled job again."""
        async with queue_needed():
            async with self._admitting:
                record = await self._record(request.id)
                check_owner(record, calling())
                if record.state.ended:
                    await self._quota.check()
                    await check_limits(self._records, calling())
                so = f"which job {record.id!r} waits for: retry that one first"
                waits_for = await self._unfinished(record.after, so)
                if await self._records.num_open() >= self._max_open:
                    raise self._too_many()
                done = await self._records.retry(record.id, "Queued again; it goes on from its checkpoints.")
            if done in _NOT_RETRIED:
                raise Conflict(f"job {record.id!r} {_NOT_RETRIED[done]}")
            if done == "ok":
                await self._blocking(self._queue.again, record.id, waits_for)
            return jobs_pb2.RetryJobResponse(job=await self._job(record.id))

    async def ReadJobLog(
        self, request: jobs_pb2.ReadJobLogRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.ReadJobLogResponse:
        """The last lines of a job's log."""
        at_most = request.lines if request.HasField("lines") else DEFAULT_LINES
        async with queue_needed():
            record = await self._record(request.id)
        tail = await asyncio.to_thread(read_tail, self._home, record.id, at_most)
        lines = [jobs_pb2.LogLine(at=e.at, attempt=e.attempt, event=e.event, text=e.text) for e in tail.lines]
        return jobs_pb2.ReadJobLogResponse(lines=lines, num_before=tail.num_before, has_more=tail.has_more)

    async def GetRecipeSchema(
        self, request: jobs_pb2.GetRecipeSchemaRequest, context: grpc.aio.ServicerContext
    ) -> jobs_pb2.GetRecipeSchemaResponse:
        """The JSON schema of a recipe."""
        return jobs_pb2.GetRecipeSchemaResponse(json_schema=_schema_json())

    async def _unfinished(self, after: Sequence[str], so: str = "so nothing can be queued after it") -> list[str]:
        """The jobs in `after` that have not succeeded yet.

        Raises InvalidRequest for an unknown job, and Conflict for a job that failed or was cancelled. The sentence of
        the Conflict ends with `so`.
        """
        if not after:
            return []
        found = dict(zip(after, await self._records.get_all(after), strict=True))
        places = list(enumerate(found.items()))
        if unknown := [(i, job_id) for i, (job_id, record) in places if record is None]:
            raise InvalidRequest(
                [Violation(f"after[{i}]", f"there is no job {name!r} to wait for") for i, name in unknown]
            )
        for job_id, record in found.items():
            if record is not None and record.state in (JobState.FAILED, JobState.CANCELLED):
                verb = "has failed" if record.state is JobState.FAILED else "was cancelled"
                raise Conflict(f"job {job_id!r} {verb}, {so}")
        return [job_id for job_id, record in found.items() if record and record.state is not JobState.SUCCEEDED]

    async def _submit(
        self, values: dict[str, str], after: Sequence[str], waits_for: Sequence[str], idempotency_key: str
    ) -> str:
        """The id of a new job in the queue, or of the job that the idempotency key made before.

        The record is written first. If the server dies before the job is in the queue, the janitor puts it there.
        """
        job_id = f"{int(time.time()):x}-{uuid.uuid4().hex[:12]}"
        made = await self._records.submit(job_id, values, after, idempotency_key, self._max_open)
        if made not in (job_id, "") and await self._records.get(made) is None:
            await self._records.forget_submission(idempotency_key)
            made = await self._records.submit(job_id, values, after, idempotency_key, self._max_open)
        if not made:
            raise self._too_many()
        if made == job_id:
            await self._blocking(self._queue.enqueue, job_id, waits_for)
        return made

    def _too_many(self) -> Overloaded:
        return Overloaded(
            f"{self._max_open} jobs wait or run, which is the most that this server takes "
            "(CROSSCOPE_SERVER_MAX_OPEN_JOBS): cancel some, or submit again when some have ended",
            retry_after_s=60.0,
        )

    async def _record(self, job_id: str) -> JobRecord:
        record = await self._records.get(job_id)
        if record is None:
            raise NotFound(f"there is no job {job_id!r}: list the jobs to see which there are")
        return record

    async def _job(self, job_id: str) -> jobs_pb2.Job:
        record = await self._record(job_id)
        return job_message(record, await self._waiting([record]))

    async def _waiting(self, records: Sequence[JobRecord]) -> list[str]:
        if all(record.state is not JobState.QUEUED for record in records):
            return []
        return await self._blocking(self._queue.waiting)


@functools.cache
def _schema_json() -> str:
    """The JSON schema of recipes. It takes 70 ms to compute and never changes."""
    return json.dumps(recipe_schema())
