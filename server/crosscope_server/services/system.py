"""The service crosscope.v1.System: what can be asked here, and how the parts are. Changes nothing."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio
from redis.exceptions import RedisError

from crosscope_proto import __version__
from crosscope_proto.artefacts import PAIR_MANIFEST, SCHEMA_VERSION
from crosscope_proto.recipe_yaml import MAX_BYTES
from crosscope_proto.v1 import system_pb2, system_pb2_grpc
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.admission import Admission
from crosscope_server.cache import Cache
from crosscope_server.callers import Caller, calling
from crosscope_server.catalogue import Catalogue
from crosscope_server.job_figures import JobCounter, JobFigures
from crosscope_server.memory import resident_bytes
from crosscope_server.metrics import Metrics, free_bytes, token_name
from crosscope_server.prompts import MAX_PROMPT_BYTES
from crosscope_server.quota import Quota
from crosscope_server.store_figures import store_status
from crosscope_server.workers import Workers
from crosscope_store.shelf import Shelf

_ABSENT, _AWAY, _UP = system_pb2.PART_STATE_ABSENT, system_pb2.PART_STATE_AWAY, system_pb2.PART_STATE_UP


@dataclass(frozen=True)
class Parts:
    """What an installation consists of, as the server sees it."""

    home: Path
    catalogue: Catalogue
    workers: Workers
    metrics: Metrics
    admission: Admission
    jobs: JobCounter | None
    """None: this server has no queue."""
    cache: Cache | None
    quota: Quota
    max_request_bytes: int
    stream_in_flight: int
    reflection: bool
    shelf: Shelf


class SystemService(system_pb2_grpc.SystemServicer):
    """Tells about the installation."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GetCapabilities(
        self, request: system_pb2.GetCapabilitiesRequest, context: grpc.aio.ServicerContext
    ) -> system_pb2.GetCapabilitiesResponse:
        """What can be asked, by whom, and how the parts are."""
        parts = self._parts
        (cards, broken), described, queue, pairs, held = await asyncio.gather(
            parts.catalogue.cards(),
            parts.workers.describe(),
            asyncio.to_thread(_queue, parts.jobs),
            asyncio.to_thread(_pairs, parts.home),
            parts.quota.held(),
        )
        workers = [_worker(i, *each) for i, each in enumerate(described)]
        cache = _ABSENT if parts.cache is None else _UP if parts.cache.is_up else _AWAY
        free = free_bytes(parts.home)
        known = [
            system_pb2.CrosscoderName(
                name=card.manifest.name, pair=card.manifest.pair.name, version_id=card.manifest.version_id
            )
            for card in cards
        ]
        states = {
            "latents": True,
            "prompts": any(worker.state == _UP for worker in workers),
            "jobs": queue.state == _UP,
            "cache": cache == _UP,
            "reflection": parts.reflection,
        }
        return system_pb2.GetCapabilitiesResponse(
            version=__version__,
            schema_version=SCHEMA_VERSION,
            features=[name for name, is_there in states.items() if is_there],
            pairs=pairs,
            crosscoders=[*known, *(system_pb2.CrosscoderName(name=each.name) for each in broken)],
            inference_workers=workers,
            queue=queue,
            cache=cache,
            store=store_status(parts.shelf),
            disk_free_bytes=0 if math.isnan(free) else int(free),
            traffic=system_pb2.Traffic(
                **asdict(parts.metrics.traffic()),
                memory_bytes=resident_bytes(),
                prompts_under_way=parts.admission.num_inside,
                max_prompts_under_way=parts.admission.most_inside,
                prompts_waiting=parts.admission.num_waiting,
                refused=parts.admission.refused_lately(),
            ),
            limits=self._limits(workers),
            caller=_caller(calling()),
            home_bytes=held and held.held_bytes,
            home_max_bytes=held and held.max_bytes,
        )

    def _limits(self, workers: Sequence[system_pb2.InferenceWorker]) -> system_pb2.RequestLimits:
        return system_pb2.RequestLimits(
            request_bytes=self._parts.max_request_bytes,
            conversation_bytes=MAX_PROMPT_BYTES,
            prompt_tokens=min((each.max_prompt_tokens for each in workers if each.max_prompt_tokens), default=0),
            recipe_bytes=MAX_BYTES,
            stream_in_flight=self._parts.stream_in_flight,
        )


def _worker(
    index: int, says_serving: bool, described: inference_pb2.DescribeResponse | None
) -> system_pb2.InferenceWorker:
    if described is None:
        return system_pb2.InferenceWorker(index=index, state=_AWAY, says_serving=says_serving)
    return system_pb2.InferenceWorker(
        index=index,
        state=_UP,
        says_serving=says_serving,
        version=described.version,
        device=described.device,
        memory_bytes=described.memory_bytes,
        memory_limit_bytes=described.memory_limit_bytes,
        max_prompt_tokens=described.max_prompt_tokens,
        queued_tokens=described.queued_tokens,
        device_busy_s=described.device_busy_s,
        devices=described.devices,
    )


def _queue(jobs: JobCounter | None) -> system_pb2.QueueStatus:
    """How the queue stands; blocks for at most a few seconds."""
    if jobs is None:
        return system_pb2.QueueStatus(state=_ABSENT)
    try:
        return _figures(jobs.count())
    except RedisError:
        return system_pb2.QueueStatus(state=_AWAY)


def _figures(found: JobFigures) -> system_pb2.QueueStatus:
    now = time.time()
    return system_pb2.QueueStatus(
        state=_UP,
        jobs=found.by_state,
        oldest_queued_s=found.oldest_queued_s,
        running=[
            system_pb2.RunningJob(
                id=job.id,
                kind=job.kind,
                name=job.name,
                stage=job.stage,
                message=job.message,
                done=job.done,
                tokens_per_s=job.tokens_per_s or 0.0,
            )
            for job in found.running
        ],
        workers=[
            system_pb2.JobWorker(
                device=note.device,
                name=note.name,
                memory_bytes=note.memory_bytes or 0,
                silent_s=max(0.0, now - note.at),
                devices=[
                    system_pb2.DeviceMemory(
                        name=each.device,
                        used_bytes=each.used_bytes or 0,
                        limit_bytes=each.limit_bytes or 0,
                        busy=each.busy,
                    )
                    for each in note.devices
                ],
            )
            for note in found.workers
        ],
    )


def _pairs(home: Path) -> list[str]:
    return sorted(path.parent.name for path in home.glob(f"pairs/*/{PAIR_MANIFEST}"))


def _caller(caller: Caller) -> system_pb2.CallerStatus:
    limits = {name: limit for name, limit in asdict(caller.limits).items() if limit is not None}
    return system_pb2.CallerStatus(name=token_name(caller.name), roles=sorted(caller.roles), limits=limits)
