"""Capabilities from the server's message. No other module reads it."""

from dataclasses import replace

from crosscope import __version__
from crosscope._capabilities import (
    CallerStatus,
    Capabilities,
    DeviceMemory,
    InferenceWorker,
    JobWorker,
    PartState,
    QueueStatus,
    RequestLimits,
    RunningJob,
    StoreStatus,
    Traffic,
)
from crosscope._problems import problems_of
from crosscope_proto.v1 import system_pb2

_STATES = {
    system_pb2.PART_STATE_ABSENT: PartState.ABSENT,
    system_pb2.PART_STATE_AWAY: PartState.AWAY,
    system_pb2.PART_STATE_UP: PartState.UP,
}


def capabilities(message: system_pb2.GetCapabilitiesResponse) -> Capabilities:
    """What an installation can do, how its parts are, and what is wrong."""
    found = Capabilities(
        version=message.version,
        client_version=__version__,
        schema_version=message.schema_version,
        features=tuple(message.features),
        pairs=tuple(message.pairs),
        crosscoders=tuple(each.name for each in message.crosscoders if each.version_id),
        broken=tuple(each.name for each in message.crosscoders if not each.version_id),
        inference_workers=tuple(map(_inference_worker, message.inference_workers)),
        queue=_queue(message.queue),
        cache=_state(message.cache),
        disk_free_bytes=message.disk_free_bytes,
        traffic=_traffic(message.traffic),
        limits=RequestLimits(
            request_bytes=message.limits.request_bytes,
            conversation_bytes=message.limits.conversation_bytes,
            prompt_tokens=message.limits.prompt_tokens or None,
            recipe_bytes=message.limits.recipe_bytes,
            stream_in_flight=message.limits.stream_in_flight,
        ),
        home_bytes=message.home_bytes if message.HasField("home_bytes") else None,
        home_max_bytes=message.home_max_bytes if message.HasField("home_max_bytes") else None,
        caller=CallerStatus(message.caller.name, tuple(message.caller.roles), dict(message.caller.limits)),
        store=StoreStatus(
            state=_state(message.store.state),
            url=message.store.url,
            sentence=message.store.sentence,
            published=message.store.published,
            copies_bytes=message.store.copies_bytes,
            limit_bytes=message.store.limit_bytes,
        ),
    )
    return replace(found, problems=problems_of(found))


def _state(state: "system_pb2.PartState.ValueType") -> PartState:
    return _STATES.get(state, PartState.ABSENT)


def _inference_worker(message: system_pb2.InferenceWorker) -> InferenceWorker:
    return InferenceWorker(
        index=message.index,
        state=_state(message.state),
        says_serving=message.says_serving,
        version=message.version,
        device=message.device,
        memory_bytes=message.memory_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        max_prompt_tokens=message.max_prompt_tokens,
        queued_tokens=message.queued_tokens,
        device_busy_s=message.device_busy_s,
        devices=tuple(map(_device, message.devices)),
    )


def _device(message: system_pb2.DeviceMemory) -> DeviceMemory:
    busy = message.busy if message.HasField("busy") else None
    return DeviceMemory(message.name, message.used_bytes, message.limit_bytes, busy)


def _queue(message: system_pb2.QueueStatus) -> QueueStatus:
    return QueueStatus(
        state=_state(message.state),
        jobs=dict(message.jobs),
        oldest_queued_s=message.oldest_queued_s,
        running=tuple(
            RunningJob(
                id=each.id,
                kind=each.kind,
                name=each.name,
                stage=each.stage,
                message=each.message,
                done=each.done,
                tokens_per_s=each.tokens_per_s or None,
            )
            for each in message.running
        ),
        workers=tuple(
            JobWorker(
                each.device, each.name, each.memory_bytes or None, each.silent_s, tuple(map(_device, each.devices))
            )
            for each in message.workers
        ),
    )


def _traffic(message: system_pb2.Traffic) -> Traffic:
    return Traffic(
        calls_per_s=message.calls_per_s,
        errors_per_s=message.errors_per_s,
        p50_ms=message.p50_ms,
        p99_ms=message.p99_ms,
        in_flight=message.in_flight,
        memory_bytes=message.memory_bytes,
        prompts_under_way=message.prompts_under_way,
        max_prompts_under_way=message.max_prompts_under_way,
        prompts_waiting=message.prompts_waiting,
        refused=dict(message.refused),
    )
