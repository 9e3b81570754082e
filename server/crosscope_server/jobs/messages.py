"""Records of jobs as messages of the Jobs service. Asks nobody."""

from collections.abc import Sequence

from crosscope_proto.v1 import jobs_pb2
from crosscope_server.jobs.records import Event, JobRecord, JobState

_STATES = {
    JobState.QUEUED: jobs_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: jobs_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: jobs_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
}


def job_message(record: JobRecord, waiting: Sequence[str]) -> jobs_pb2.Job:
    """A job as it stands; `waiting` are the ids in the queue, the next one first."""
    position = 0
    if record.state is JobState.QUEUED:
        position = waiting.index(record.id) if record.id in waiting else len(waiting) if record.after else 0
    return jobs_pb2.Job(
        id=record.id,
        kind=record.kind,
        name=record.name,
        state=_STATES[record.state],
        queue_position=position,
        after=record.after,
        stage=record.stage,
        fraction=record.fraction,
        message=record.message,
        attempt=record.attempt,
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        metrics=record.metrics,
        stage_seconds=record.stage_seconds,
        version_id=record.version_id,
        request_id=record.request_id,
        recipe_yaml=record.recipe,
        total_fraction=record.total_fraction,
        owner=record.owner,
        eta_s=record.eta_s if record.state is JobState.RUNNING else 0,
    )


def event_message(event: Event) -> jobs_pb2.JobEvent:
    """Something that happened to a job."""
    return jobs_pb2.JobEvent(
        id=event.id,
        at=event.at,
        stage=event.stage,
        fraction=event.fraction,
        message=event.message,
        step=event.step,
        metrics=event.metrics,
        rel_norms=event.rel_norms,
    )
