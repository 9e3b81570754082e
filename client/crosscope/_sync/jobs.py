# Written by client/generate.py from _async/jobs.py. Do not edit.
"""Jobs: submit recipes; follow jobs, through restarts of the server too; wait; cancel."""

import json
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from crosscope import _blocking, _cards, _decode, _decode_plans
from crosscope._errors import DeadlineExceeded, JobCancelled, JobFailed, Unavailable
from crosscope._plan_types import JobLog, Plan
from crosscope._progress import move_to, open_bar
from crosscope._prompts import check_count, check_flag, check_text
from crosscope._public import public
from crosscope._recipes import recipe_folder, recipe_text
from crosscope._sync.transport import Transport
from crosscope._types import JobEvent, JobInfo, JobState, JobUpdate
from crosscope_proto.v1 import jobs_pb2
from crosscope_proto.v1.jobs_pb2_grpc import JobsStub

_RECONNECT_S = 60.0
_RECONNECT_DELAYS_S = (0.2, 0.5, 1.0, 2.0)


@public
class Job:
    """A job in the queue of the server. Its properties say how it stood when the server was last asked."""

    info: JobInfo
    """How it stood when the server was last asked."""
    warnings: tuple[str, ...]
    """Sentences about its recipe, from when it was submitted."""

    def __init__(self, transport: Transport, info: JobInfo, warnings: Sequence[str] = ()) -> None:
        self.info, self.warnings = info, tuple(warnings)
        self._transport = transport

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    @property
    def state(self) -> JobState:
        """Where it stood when the server was last asked."""
        return self.info.state

    def __reduce__(self) -> tuple[object, ...]:
        return Job, (self._transport, self.info, self.warnings)

    @property
    def _stub(self):
        return self._transport.stub(JobsStub)

    def refresh(self) -> "Job":
        """Asks how it stands now; returns itself."""
        reply = self._transport.unary(self._stub.GetJob, jobs_pb2.GetJobRequest(id=self.id))
        self.info = _decode.job(reply.job)
        return self

    def cancel(self) -> "Job":
        """Asks it to stop: at once if queued, at its next step if running. Returns itself."""
        reply = self._transport.unary(self._stub.CancelJob, jobs_pb2.CancelJobRequest(id=self.id))
        self.info = _decode.job(reply.job)
        return self

    def retry(self) -> "Job":
        """Queues it again after it has failed or was cancelled; it goes on from its checkpoints. Returns itself.

        Raises Conflict if it runs or has succeeded, or if its checkpoints are gone.
        """
        reply = self._transport.unary(self._stub.RetryJob, jobs_pb2.RetryJobRequest(id=self.id))
        self.info = _decode.job(reply.job)
        return self

    def log(self, lines: int = 100) -> JobLog:
        """The last lines of its log, at most 1000: stages, what they said, errors, how each attempt ended.

        Holds no text of data sets and no prompts; what looks like a secret is masked.
        """
        return Jobs(self._transport).log(self.id, lines)

    def watch(self, after_event: str = "") -> Generator[JobEvent, None, None]:
        """The job's events until it has ended: all of them, or those after the one with the id `after_event`."""
        with closing(self.updates(after_event)) as updates:
            for update in updates:
                yield from update.events

    def updates(self, after_event: str = "", timeout_s: float | None = None) -> Generator[JobUpdate, None, None]:
        """News of the job until it has ended: how it stands, and its new events, of which there may be none.

        When the connection breaks, the job is followed further on a new one. Raises Unavailable when no server has
        answered for a minute, DeadlineExceeded after `timeout_s`.
        """
        ends_at = time.monotonic() + timeout_s if timeout_s is not None else None
        silent_since = time.monotonic()
        attempts = 0
        while True:
            try:
                with closing(self._follow(after_event, _left(ends_at))) as updates:
                    for update in updates:
                        silent_since, attempts = time.monotonic(), 0
                        self.info = update.job
                        after_event = update.events[-1].id if update.events else after_event
                        yield update
                if self.state.is_over:
                    return
            except Unavailable:
                if time.monotonic() - silent_since > _RECONNECT_S:
                    raise
            except DeadlineExceeded:
                raise self._too_slow(timeout_s) from None
            delay_s = _RECONNECT_DELAYS_S[min(attempts, len(_RECONNECT_DELAYS_S) - 1)]
            left_s = _left(ends_at)
            if left_s is not None and left_s <= delay_s:
                raise self._too_slow(timeout_s)
            _blocking.sleep(delay_s)
            attempts += 1

    def _follow(self, after_event: str, timeout_s: float | None) -> Generator[JobUpdate, None, None]:
        request = jobs_pb2.WatchJobRequest(id=self.id, after_event=check_text(after_event, "after_event"))
        with closing(self._transport.stream(self._stub.WatchJob, request, timeout_s)) as replies:
            for reply in replies:
                info = _decode.job(reply.job)
                if not info.recipe_yaml:  # the server sends it in the first reply only
                    info = replace(info, recipe_yaml=self.info.recipe_yaml)
                yield JobUpdate(info, tuple(map(_decode.job_event, reply.events)))

    def _too_slow(self, timeout_s: float | None) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"job {self.id} is still {self.state} after {timeout_s:g} s; it goes on: wait again, or cancel it"
        )

    def wait(self, timeout_s: float | None = None, *, progress: bool | None = None) -> "Job":
        """Returns itself once it has succeeded.

        `progress` shows a bar of the whole job; by default in a terminal and in a notebook. Raises JobFailed,
        JobCancelled, or DeadlineExceeded after `timeout_s`.
        """
        if not self.state.is_over:
            with open_bar(progress, self.info.name, 1.0, "") as bar:
                for update in self.updates(timeout_s=timeout_s):
                    bar.set_description(f"{self.info.name} {update.job.stage}", refresh=False)
                    move_to(bar, update.job.total_fraction)
        if self.state is JobState.FAILED:
            raise JobFailed(self.info)
        if self.state is JobState.CANCELLED:
            raise JobCancelled(self.info)
        return self

    def __repr__(self) -> str:
        return _cards.job_line(self.info)

    def __str__(self) -> str:
        return _cards.job_card(self.info)

    def _repr_html_(self) -> str:
        return _cards.job_html(self.info)


def _left(ends_at: float | None) -> float | None:
    return None if ends_at is None else max(ends_at - time.monotonic(), 0.001)


@public
class Jobs:
    """The jobs of a server: `client.jobs`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __reduce__(self) -> tuple[object, ...]:
        return Jobs, (self._transport,)

    @property
    def _stub(self):
        return self._transport.stub(JobsStub)

    def submit(
        self,
        recipe: str | Path | Mapping[str, object],
        *,
        after: Sequence[str | Job] = (),
        validate_only: bool = False,
    ) -> Job:
        """Queues a recipe: the path of a YAML file, YAML text, or the same as a dict.

        In a file, relative paths to data sets that lie beside it are made absolute. The job worker looks for the others
        in the file's folder too, if it may read there. `after` names jobs that must succeed first. With `validate_only`
        the recipe is only checked, and the job that is returned has no id. `warnings` of the job are about the recipe.
        """
        request = jobs_pb2.SubmitJobRequest(
            recipe_yaml=recipe_text(recipe),
            folder=recipe_folder(recipe),
            after=_ids(after),
            idempotency_key=uuid.uuid4().hex,
            validate_only=check_flag(validate_only, "validate_only"),
        )
        reply = self._transport.unary(self._stub.SubmitJob, request)
        return Job(self._transport, _decode.job(reply.job), reply.warnings)

    def plan(
        self,
        recipe: str | Path | Mapping[str, object],
        *,
        after: Sequence[str | Job] = (),
        device: str | None = None,
    ) -> Plan:
        """Checks a recipe as `submit` does, and says what its job would take: tokens, memory, disk, time, downloads.

        For the devices of the job workers that listen now, or for `device`, the name of one that was measured ("h100",
        "cpu"). Loads nothing and queues nothing. What is unknown is None and says why. Raises InvalidInput.
        """
        request = jobs_pb2.PlanJobRequest(
            recipe_yaml=recipe_text(recipe),
            after=_ids(after),
            device="" if device is None else check_text(device, "device"),
        )
        return _decode_plans.plan(self._transport.unary(self._stub.PlanJob, request))

    def get(self, job_id: str) -> Job:
        """One job."""
        request = jobs_pb2.GetJobRequest(id=check_text(job_id, "id"))
        return self._job((self._transport.unary(self._stub.GetJob, request)).job)

    def list(self, limit: int = 50, *, recipes: bool = True) -> list[Job]:
        """Jobs, newest first. Without `recipes` their recipes are left out; `get` gives the recipe of one job."""
        request = jobs_pb2.ListJobsRequest(
            limit=check_count(limit, "limit", low=1), without_recipes=not check_flag(recipes, "recipes")
        )
        return [self._job(message) for message in (self._transport.unary(self._stub.ListJobs, request)).jobs]

    def cancel(self, job_id: str) -> Job:
        """Asks a job to stop; see `Job.cancel`."""
        request = jobs_pb2.CancelJobRequest(id=check_text(job_id, "id"))
        return self._job((self._transport.unary(self._stub.CancelJob, request)).job)

    def retry(self, job_id: str) -> Job:
        """Queues a job again that has failed or was cancelled; see `Job.retry`."""
        request = jobs_pb2.RetryJobRequest(id=check_text(job_id, "id"))
        return self._job((self._transport.unary(self._stub.RetryJob, request)).job)

    def log(self, job_id: str, lines: int = 100) -> JobLog:
        """The last lines of a job's log; see `Job.log`."""
        request = jobs_pb2.ReadJobLogRequest(id=check_text(job_id, "id"), lines=check_count(lines, "lines", low=1))
        return _decode_plans.job_log(self._transport.unary(self._stub.ReadJobLog, request))

    def schema(self) -> dict[str, object]:
        """The JSON schema of recipes; the descriptions of fields are their help texts."""
        request = jobs_pb2.GetRecipeSchemaRequest()
        return json.loads((self._transport.unary(self._stub.GetRecipeSchema, request)).json_schema)

    def _job(self, message: jobs_pb2.Job) -> Job:
        return Job(self._transport, _decode.job(message))


def _ids(after: Sequence[str | Job] | str | Job) -> list[str]:
    return [check_text(job.id if isinstance(job, Job) else job, "after") for job in _as_list(after)]


def _as_list(after: Sequence[str | Job] | str | Job) -> Sequence[str | Job]:
    return [after] if isinstance(after, str | Job) else after
