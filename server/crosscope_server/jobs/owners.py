"""Whose a job is, who may change it, and what its owner's limits say."""

import time
from collections.abc import Sequence

from crosscope_proto.access import OPERATOR, is_name
from crosscope_proto.recipe import CrosscoderRecipe, Recipe
from crosscope_server.callers import Caller, Role
from crosscope_server.errors import Overloaded, PermissionDenied
from crosscope_server.jobs.estimate import Target
from crosscope_server.jobs.records import JobRecord, JobRecords, JobState

_DAY_S = 86400


def owner_of(caller: Caller) -> str:
    """The owner of what a caller submits; empty where callers have no names."""
    return caller.name if is_name(caller.name) or caller.name == OPERATOR else ""


def num_devices(recipe: Recipe, targets: Sequence[Target]) -> int:
    """How many devices a job holds at once, by its recipe and the devices of the job workers. A CPU is one device."""
    if not isinstance(recipe, CrosscoderRecipe) or (targets and all("cuda" not in each.kinds for each in targets)):
        return 1
    wanted = recipe.training.devices
    return max((each.num_devices or 1 for each in targets), default=1) if wanted == "auto" else wanted


def check_owner(record: JobRecord, caller: Caller) -> None:
    """Raises PermissionDenied if somebody may not cancel or retry a job: neither theirs, nor are they an admin."""
    if record.owner != caller.name and Role.ADMIN not in caller.roles:
        whose = f"belongs to {record.owner!r}" if record.owner else "has no owner"
        sentence = (
            f"job {record.id!r} {whose}, so the token {caller.name!r} needs the role 'admin' to cancel or retry it; "
            "ask its owner, or whoever runs this server"
        )
        raise PermissionDenied(sentence, caller.name)


async def check_limits(records: JobRecords, caller: Caller) -> None:
    """Raises Overloaded if a caller has too many jobs waiting, or has used up today's device time."""
    most, seconds = caller.limits.queued_jobs, caller.limits.gpu_seconds_per_day
    if most is None and seconds is None:
        return
    found = await records.get_all(await records.open_ids())
    mine = [record for record in found if record and record.owner == caller.name and not record.state.ended]
    waiting = sum(record.state is JobState.QUEUED for record in mine)
    if most is not None and waiting >= most:
        raise Overloaded(
            f"{waiting} jobs of the token {caller.name!r} wait, and at most {most} may; wait until one has started, or "
            "cancel one"
        )
    if seconds is None:
        return
    now = time.time()
    running = sum(
        max(now - record.started_at, 0) * max(record.num_devices, 1)
        for record in mine
        if record.state is JobState.RUNNING
    )
    used = await records.spent_s(caller.name, now) + running
    if used >= seconds:
        raise Overloaded(
            f"jobs of the token {caller.name!r} have taken {used:.0f} of its {seconds} GPU seconds of today; submit "
            "again after 00:00 UTC, or ask whoever runs this server for more",
            retry_after_s=_DAY_S - now % _DAY_S,
        )
