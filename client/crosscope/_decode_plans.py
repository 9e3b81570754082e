"""Plans and logs of jobs, from messages to the SDK's types. Asks nobody."""

from collections.abc import Iterable

import crosscope._plan_types as types
from crosscope import _decode
from crosscope_proto.v1 import jobs_pb2

_FITS = {jobs_pb2.FIT_YES: True, jobs_pb2.FIT_NO: False}


def plan(message: jobs_pb2.PlanJobResponse) -> types.Plan:
    """What a checked recipe would take."""
    return types.Plan(
        job=_decode.job(message.job),
        entries=_plan_entries(message.entries),
        warnings=tuple(message.warnings),
        devices=tuple(map(_device_plan, message.devices)),
        downloads=tuple(map(_download, message.downloads)),
        disk=_disk_plan(message.disk),
    )


def _disk_plan(message: jobs_pb2.DiskPlan) -> types.DiskPlan:
    return types.DiskPlan(
        entries=_plan_entries(message.entries),
        peak_bytes=message.peak_bytes,
        kept_bytes=message.kept_bytes,
        free_bytes=message.free_bytes if message.HasField("free_bytes") else None,
        left_bytes=message.left_bytes if message.HasField("left_bytes") else None,
        fits=_FITS.get(message.fit),
    )


def _plan_entries(messages: Iterable[jobs_pb2.PlanEntry]) -> tuple[types.PlanEntry, ...]:
    return tuple(
        types.PlanEntry(each.name, each.value if each.HasField("value") else None, each.unit, each.note)
        for each in messages
    )


def _device_plan(message: jobs_pb2.DevicePlan) -> types.DevicePlan:
    return types.DevicePlan(
        name=message.name,
        memory_bytes=message.memory_bytes if message.HasField("memory_bytes") else None,
        free_bytes=message.free_bytes if message.HasField("free_bytes") else None,
        memory=_plan_entries(message.memory),
        fits=_FITS.get(message.fit),
        ways_out=tuple(message.ways_out),
        times=_plan_entries(message.times),
        rates=message.rates,
    )


def _download(message: jobs_pb2.Download) -> types.Download:
    return types.Download(
        field=message.field,
        source=message.source,
        size_bytes=message.size_bytes if message.HasField("size_bytes") else None,
        gated=message.gated if message.HasField("gated") else None,
    )


def job_log(message: jobs_pb2.ReadJobLogResponse) -> types.JobLog:
    """The end of a job's log."""
    lines = (types.LogLine(each.at, each.attempt, each.event, each.text) for each in message.lines)
    return types.JobLog(tuple(lines), message.num_before, message.has_more)
