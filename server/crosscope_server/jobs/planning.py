"""PlanJob's answer: the devices to plan for, and a plan as a message. Knows nothing about how amounts are estimated."""

from collections.abc import Iterable, Sequence

from crosscope_proto import rates
from crosscope_proto.job_record import WorkerNote
from crosscope_proto.recipe import Recipe
from crosscope_proto.v1 import jobs_pb2
from crosscope_server.errors import InvalidRequest, Violation
from crosscope_server.jobs.disk import DiskPlan
from crosscope_server.jobs.estimate import DevicePlan, Entry, Target
from crosscope_server.jobs.hub import Download
from crosscope_server.jobs.plan import Planned
from crosscope_server.jobs.records import JobRecord, JobState

_FITS = {None: jobs_pb2.FIT_UNSPECIFIED, True: jobs_pb2.FIT_YES, False: jobs_pb2.FIT_NO}


def named_target(name: str) -> Target:
    """The device of that name in the table of rates. Raises InvalidRequest."""
    found = rates.named(name)
    if found is None:
        there = ", ".join(each.name for each in rates.DEVICES)
        raise InvalidRequest([Violation("device", f"no rates were measured on {name!r}; there are {there}")])
    return Target(found.name, found, found.memory_bytes)


def targets_of(notes: Iterable[WorkerNote]) -> list[Target]:
    """The devices of job workers, each kind once: of equal ones the one with most free memory."""
    found: dict[tuple[str, int | None], Target] = {}
    for note in sorted(notes, key=lambda each: each.free_bytes or 0):
        target = Target(
            note.name,
            rates.of_device(note.name),
            note.memory_bytes,
            note.free_bytes,
            note.device,
            note.num_devices if note.device.startswith("cuda") else None,
        )
        found[note.name, note.memory_bytes] = target
    return list(found.values())


def reply(
    recipe: Recipe, recipe_yaml: str, planned: Planned, earlier: Sequence[Entry], warnings: Sequence[str]
) -> jobs_pb2.PlanJobResponse:
    """A plan as a message; `earlier` are entries that come from earlier jobs."""
    return jobs_pb2.PlanJobResponse(
        job=jobs_pb2.Job(kind=recipe.kind, name=recipe.name, recipe_yaml=recipe_yaml),
        warnings=[*warnings, *planned.warnings],
        entries=[_entry(each) for each in (*planned.entries, *earlier)],
        devices=[_device(each) for each in planned.devices],
        downloads=[_download(each) for each in planned.downloads],
        disk=_disk(planned.disk),
    )


def earlier_entries(records: Sequence[JobRecord], recipe: Recipe) -> list[Entry]:
    """How long the newest job of a recipe's kind and name took that succeeded."""
    for record in records:
        if (record.kind, record.name, record.state) == (recipe.kind, recipe.name, JobState.SUCCEEDED):
            note = "the stages of the newest one that succeeded; its recipe may have been another"
            return [Entry("last job of this name", sum(record.stage_seconds.values()), "seconds", note)]
    return []


def _device(plan: DevicePlan) -> jobs_pb2.DevicePlan:
    return jobs_pb2.DevicePlan(
        name=plan.name,
        memory_bytes=plan.memory_bytes,
        free_bytes=plan.free_bytes,
        memory=[_entry(each) for each in plan.memory],
        fit=_FITS[plan.fits],
        ways_out=plan.ways_out,
        times=[_entry(each) for each in plan.times],
        rates=plan.rates,
    )


def _disk(plan: DiskPlan) -> jobs_pb2.DiskPlan:
    return jobs_pb2.DiskPlan(
        entries=[_entry(each) for each in plan.entries],
        peak_bytes=plan.peak_bytes,
        kept_bytes=plan.kept_bytes,
        free_bytes=plan.free_bytes,
        left_bytes=plan.left_bytes,
        fit=_FITS[plan.fits],
    )


def _entry(entry: Entry) -> jobs_pb2.PlanEntry:
    return jobs_pb2.PlanEntry(name=entry.name, value=entry.value, unit=entry.unit, note=entry.note)


def _download(each: Download) -> jobs_pb2.Download:
    return jobs_pb2.Download(field=each.field, source=each.source, size_bytes=each.size_bytes, gated=each.gated)
