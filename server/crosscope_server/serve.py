"""Puts the server together: services, health, reflection, interceptors, ports. It has the only list of services."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import expose
from crosscope_proto.handlers import ByName
from crosscope_proto.healths import Healths
from crosscope_proto.v1 import (
    annotations_pb2,
    annotations_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    latents_pb2,
    latents_pb2_grpc,
    looks_pb2,
    looks_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from crosscope_server.access.audit import Audit
from crosscope_server.access.gate import Gate
from crosscope_server.access.interceptor import AccessInterceptor
from crosscope_server.access.notes import noted
from crosscope_server.access.store import StoreError, Tokens
from crosscope_server.admission import Admission
from crosscope_server.annotations.store import Annotations
from crosscope_server.budgets import Budgets
from crosscope_server.cache import Cache
from crosscope_server.catalogue import Catalogue
from crosscope_server.dispatch import Dispatch
from crosscope_server.door import Door
from crosscope_server.effects import Effects
from crosscope_server.interceptors import CallInterceptor, RequestIdInterceptor
from crosscope_server.job_figures import JobCollector, JobCounter
from crosscope_server.jobs.service import jobs_service
from crosscope_server.listening import MAX_REQUEST_BYTES, StartError, listen, options
from crosscope_server.load import Load
from crosscope_server.looks import Looks
from crosscope_server.memory import give_back_for_ever
from crosscope_server.metrics import Metrics
from crosscope_server.prompts import Prompts
from crosscope_server.quota import Quota
from crosscope_server.replies import Replies
from crosscope_server.search.indices import Indices
from crosscope_server.search.searches import Searches
from crosscope_server.services.annotations import AnnotationsService
from crosscope_server.services.latents import LatentsService
from crosscope_server.services.looks import LooksService
from crosscope_server.services.prompts import PromptsService
from crosscope_server.services.system import Parts, SystemService
from crosscope_server.settings import Settings
from crosscope_server.store_figures import StoreCollector
from crosscope_server.unread import Unread
from crosscope_server.workers import Workers
from crosscope_store.following import Following
from crosscope_store.shelf import Shelf

GRACE_S = 1.5
"""How long calls under way may go on after the server was told to stop."""
_FIRST_LOOK_S = 3.0
"""How long a start waits for the first look at a store; then what is here is served."""
_CANCEL_S = 0.02
"""How long grpc takes to cancel the calls that it cuts off."""

_PROMPTS = prompts_pb2.DESCRIPTOR.services_by_name["Prompts"].full_name
_JOBS = jobs_pb2.DESCRIPTOR.services_by_name["Jobs"].full_name
_OURS = (
    latents_pb2.DESCRIPTOR.services_by_name["Latents"].full_name,
    looks_pb2.DESCRIPTOR.services_by_name["Looks"].full_name,
    _PROMPTS,
    _JOBS,
    annotations_pb2.DESCRIPTOR.services_by_name["Annotations"].full_name,
    system_pb2.DESCRIPTOR.services_by_name["System"].full_name,
)
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    server: grpc.aio.Server
    port: int
    """The port that was bound, also if the settings said 0; 1 for a Unix socket."""


@dataclass(frozen=True, eq=False)
class _Prompting:
    """The way of a prompt: the door, the workers behind it, and the service in front."""

    workers: Workers
    cache: Cache | None
    load: Load
    door: Door
    admission: Admission
    service: PromptsService


@dataclass(frozen=True, eq=False)
class _Queueing:
    """The way of a job: the limit of the home, the queue's figures, and the service in front."""

    quota: Quota
    counter: JobCounter | None
    """None: this server has no queue."""
    service: jobs_pb2_grpc.JobsServicer


@contextlib.asynccontextmanager
async def serving(settings: Settings, ages: Ages | None = None) -> AsyncGenerator[Running]:
    """Runs a server for as long as the context lasts. Raises StartError. `ages` are for its metrics."""
    async with contextlib.AsyncExitStack() as stack:
        metrics, healths = Metrics(settings.home, ages), Healths()
        shelf = await _shelf(stack, settings, metrics)
        catalogue = Catalogue(settings.home, shelf)
        prompting = _prompting(stack, settings, metrics, healths, catalogue)
        queueing = await _queueing(stack, settings, metrics, shelf)
        server = _server(settings, Gate(_tokens(stack, settings)), metrics, prompting.door)
        # Prompts may come in thousands, and health checks must not wait behind them: these have queues of their own.
        shared: Any = ByName(server)
        _add_browsing(stack, settings, catalogue, shelf, shared)
        prompts_pb2_grpc.add_PromptsServicer_to_server(prompting.service, server)
        jobs_pb2_grpc.add_JobsServicer_to_server(queueing.service, shared)
        system = _system(settings, metrics, shelf, catalogue, prompting, queueing)
        system_pb2_grpc.add_SystemServicer_to_server(system, shared)
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)
        if settings.with_reflection:
            reflection.enable_server_reflection((*_OURS, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

        for for_ever in (give_back_for_ever(), prompting.load.watch()):
            stack.callback(asyncio.create_task(for_ever).cancel)
        port = listen(server, settings)
        _expose(stack, settings, metrics)
        for name in (*_OURS, ""):
            is_there = name != _PROMPTS and (name != _JOBS or settings.queue_url is not None)
            await healths.set(name, _SERVING if is_there else _NOT_SERVING)
        await server.start()
        stack.push_async_callback(_stop, server)
        stack.push_async_callback(healths.enter_graceful_shutdown)
        prompting.workers.start()
        if settings.allow_anyone:
            log.warning("anyone who reaches the address may do everything", extra={"listen": settings.listen})
        else:
            for address in filter(None, (settings.listen, settings.socket)):
                stack.enter_context(noted(address, port, settings.home))
        facts = {"listen": settings.listen, "port": port, "home": str(settings.home), "workers": settings.workers}
        log.info("serving", extra=facts)
        yield Running(server, port)


async def _shelf(stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics) -> Shelf:
    """The published things of the home; with a store, after the first look at it or a moment."""
    shelf = settings.shelf()
    following = Following(shelf)
    following.start()
    stack.callback(following.stop)
    await asyncio.to_thread(following.wait, _FIRST_LOOK_S)
    if shelf.is_shared:
        metrics.registry.register(StoreCollector(shelf))
    return shelf


def _add_browsing(
    stack: contextlib.AsyncExitStack, settings: Settings, catalogue: Catalogue, shelf: Shelf, shared: Any
) -> None:
    """The services of what is published and of what people say about it: they need neither workers nor a queue."""
    annotations = Annotations(settings.home)
    stack.push_async_callback(annotations.close)
    indices = Indices(catalogue, settings.home, settings.search_bytes)
    stack.push_async_callback(indices.close)
    latents = LatentsService(catalogue, annotations, Searches(indices))
    latents_pb2_grpc.add_LatentsServicer_to_server(latents, shared)
    annotations_pb2_grpc.add_AnnotationsServicer_to_server(AnnotationsService(annotations, catalogue), shared)
    looks_pb2_grpc.add_LooksServicer_to_server(LooksService(Looks(settings.home, shelf)), shared)


def _prompting(
    stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics, healths: Healths, catalogue: Catalogue
) -> _Prompting:
    async def prompts_change(is_alive: bool) -> None:
        await healths.set(_PROMPTS, _SERVING if is_alive else _NOT_SERVING)

    cache = None
    if settings.cache_url:
        cache = Cache(settings.cache_url, metrics.looked_up)
        stack.push_async_callback(cache.close)
    worker_token = settings.worker_token.get_secret_value() if settings.worker_token else None
    workers = Workers(settings.workers, prompts_change, worker_token)
    metrics.watch_workers(lambda: len(workers.alive), len(settings.workers))
    stack.push_async_callback(workers.close)
    dispatch = Dispatch(workers, settings.hold_s, metrics.worker_answered)
    stack.callback(dispatch.close)
    metrics.watch_admission(lambda: dispatch.prompts.num_waiting, lambda: dispatch.prompts.oldest_s)
    load, retry_after_s = Load(), dispatch.prompts.retry_after_s
    door = Door(_PROMPTS, settings.most_calls, retry_after_s, dispatch.refused, load, settings.least_calls)
    admission = Admission(door, dispatch, metrics.label)
    metrics.registry.register(admission)
    replies = Replies(cache, per_caller=settings.cache_per_caller)
    budgets = Budgets(dispatch.refused)
    prompts, effects = Prompts(catalogue, dispatch, replies, budgets), Effects(catalogue, dispatch, replies)
    unread = Unread(settings.max_unread_bytes, dispatch.refused)
    service = PromptsService(prompts, effects, catalogue, budgets, settings.stream_in_flight, unread)
    return _Prompting(workers, cache, load, door, admission, service)


async def _queueing(stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics, shelf: Shelf) -> _Queueing:
    counter = JobCounter(settings.queue_url) if settings.queue_url else None
    if counter is not None:
        stack.callback(counter.close)
        metrics.registry.register(JobCollector(counter))
    quota = Quota(settings.home, round(settings.home_gb * 1e9) if settings.home_gb else None)
    queued = jobs_service(settings.queue_url, settings.home, quota, settings.max_open_jobs, shelf)
    return _Queueing(quota, counter, await stack.enter_async_context(queued))


def _system(
    settings: Settings,
    metrics: Metrics,
    shelf: Shelf,
    catalogue: Catalogue,
    prompting: _Prompting,
    queueing: _Queueing,
) -> SystemService:
    return SystemService(
        Parts(
            home=settings.home,
            catalogue=catalogue,
            workers=prompting.workers,
            metrics=metrics,
            admission=prompting.admission,
            jobs=queueing.counter,
            cache=prompting.cache,
            quota=queueing.quota,
            max_request_bytes=MAX_REQUEST_BYTES,
            stream_in_flight=settings.stream_in_flight,
            reflection=settings.with_reflection,
            shelf=shelf,
        )
    )


def _server(settings: Settings, gate: Gate, metrics: Metrics, door: Door) -> grpc.aio.Server:
    """A server without services. A call meets the interceptors in their order."""
    interceptors: list[grpc.aio.ServerInterceptor] = [
        RequestIdInterceptor(),
        AccessInterceptor(gate, Audit(settings.home)),
        CallInterceptor(metrics),
        door,
    ]
    return grpc.aio.server(interceptors=interceptors, options=options(settings))


def _expose(stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics) -> None:
    """Answers Prometheus, where a port is set. Raises StartError."""
    if settings.metrics_port:
        try:
            stack.callback(expose(metrics.registry, settings.metrics_port, "CROSSCOPE_SERVER_METRICS_PORT"))
        except OSError as error:
            raise StartError(str(error.strerror)) from error


async def _stop(server: grpc.aio.Server) -> None:
    """Stops the server, and waits until the calls that were cut off have ended.

    grpc prints a traceback for each call that has not ended when the loop closes.
    """
    before = asyncio.all_tasks()
    await server.stop(GRACE_S)
    await asyncio.sleep(_CANCEL_S)
    cut_off = {task for task in before if task.get_name() == "rpc_task" and task.cancelling() and not task.done()}
    if cut_off:
        await asyncio.wait(cut_off, timeout=1)


def _tokens(stack: contextlib.AsyncExitStack, settings: Settings) -> Tokens | None:
    """The tokens that callers need; None if they need none. Raises StartError."""
    if settings.allow_anyone:
        return None
    try:
        tokens = Tokens(settings.home, settings.token.get_secret_value() if settings.token else None)
    except StoreError as error:
        raise StartError(str(error)) from error
    stack.callback(tokens.close)
    return tokens
