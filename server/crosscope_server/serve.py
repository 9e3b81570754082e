"""Puts the server together: services, health, reflection, interceptors, ports. It has the only list of services."""

import asyncio
import contextlib
import logging
import os
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
MAX_REQUEST_BYTES = 4 * 1024 * 1024
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # gRPC itself cancels calls at random where more than these wait to be begun; our own door says why.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 30_000),
    ("grpc.http.overload_protection", 0),  # else it resets streams at random long before `most_streams` of them
    ("grpc.http2.bdp_probe", 0),  # else each connection's unread requests may grow to megabytes
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

_LATENTS = latents_pb2.DESCRIPTOR.services_by_name["Latents"].full_name
_LOOKS = looks_pb2.DESCRIPTOR.services_by_name["Looks"].full_name
_PROMPTS = prompts_pb2.DESCRIPTOR.services_by_name["Prompts"].full_name
_ANNOTATIONS = annotations_pb2.DESCRIPTOR.services_by_name["Annotations"].full_name
_JOBS = jobs_pb2.DESCRIPTOR.services_by_name["Jobs"].full_name
_SYSTEM = system_pb2.DESCRIPTOR.services_by_name["System"].full_name
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message says why and what to do, in one sentence."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    server: grpc.aio.Server
    port: int
    """The port that was bound, also if the settings said 0; 1 for a Unix socket."""


@contextlib.asynccontextmanager
async def serving(settings: Settings, ages: Ages | None = None) -> AsyncGenerator[Running]:
    """Runs a server for as long as the context lasts. Raises StartError. `ages` are for its metrics."""
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics(settings.home, ages)
        shelf = await _shelf(stack, settings)
        if shelf.is_shared:
            metrics.registry.register(StoreCollector(shelf))
        job_counter = JobCounter(settings.queue_url) if settings.queue_url else None
        if job_counter is not None:
            stack.callback(job_counter.close)
            metrics.registry.register(JobCollector(job_counter))
        healths = Healths()

        async def prompts_change(is_alive: bool) -> None:
            await healths.set(_PROMPTS, _SERVING if is_alive else _NOT_SERVING)

        catalogue, annotations = Catalogue(settings.home, shelf), Annotations(settings.home)
        stack.push_async_callback(annotations.close)
        indices = Indices(catalogue, settings.home, settings.search_bytes)
        stack.push_async_callback(indices.close)
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
        replies = Replies(cache, per_caller=settings.cache_per_caller)
        budgets = Budgets(dispatch.refused)
        prompts, effects = Prompts(catalogue, dispatch, replies, budgets), Effects(catalogue, dispatch, replies)
        quota = Quota(settings.home, round(settings.home_gb * 1e9) if settings.home_gb else None)
        queued = jobs_service(settings.queue_url, settings.home, quota, settings.max_open_jobs, shelf)
        jobs = await stack.enter_async_context(queued)

        gate = Gate(_tokens(stack, settings))
        load = Load()
        retry_after_s, refused = dispatch.prompts.retry_after_s, dispatch.refused
        door = Door(_PROMPTS, settings.most_calls, retry_after_s, refused, load, settings.least_calls)
        admission = Admission(door, dispatch, metrics.label)
        metrics.registry.register(admission)
        interceptors: list[grpc.aio.ServerInterceptor] = [
            RequestIdInterceptor(),
            AccessInterceptor(gate, Audit(settings.home)),
            CallInterceptor(metrics),
            door,
        ]
        options = [*_OPTIONS, ("grpc.max_concurrent_streams", settings.most_streams)]
        server = grpc.aio.server(interceptors=interceptors, options=options)
        # Prompts may come in thousands, and health checks must not wait behind them: these have queues of their own.
        shared: Any = ByName(server)
        latents_service = LatentsService(catalogue, annotations, Searches(indices))
        latents_pb2_grpc.add_LatentsServicer_to_server(latents_service, shared)
        words_service = AnnotationsService(annotations, catalogue)
        annotations_pb2_grpc.add_AnnotationsServicer_to_server(words_service, shared)
        looks_pb2_grpc.add_LooksServicer_to_server(LooksService(Looks(settings.home, shelf)), shared)
        unread = Unread(settings.max_unread_bytes, dispatch.refused)
        prompts_service = PromptsService(prompts, effects, catalogue, budgets, settings.stream_in_flight, unread)
        prompts_pb2_grpc.add_PromptsServicer_to_server(prompts_service, server)
        jobs_pb2_grpc.add_JobsServicer_to_server(jobs, shared)
        system_service = SystemService(
            Parts(
                home=settings.home,
                catalogue=catalogue,
                workers=workers,
                metrics=metrics,
                admission=admission,
                jobs=job_counter,
                cache=cache,
                quota=quota,
                max_request_bytes=MAX_REQUEST_BYTES,
                stream_in_flight=settings.stream_in_flight,
                reflection=settings.with_reflection,
                shelf=shelf,
            )
        )
        system_pb2_grpc.add_SystemServicer_to_server(system_service, shared)
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)
        if settings.with_reflection:
            ours = (_LATENTS, _LOOKS, _PROMPTS, _JOBS, _ANNOTATIONS, _SYSTEM)
            reflection.enable_server_reflection((*ours, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

        for for_ever in (give_back_for_ever(), load.watch()):
            stack.callback(asyncio.create_task(for_ever).cancel)
        port = _bind(server, settings)
        if settings.socket is not None:
            _bind_private(server, settings.socket)
        if settings.metrics_port:
            try:
                stack.callback(expose(metrics.registry, settings.metrics_port, "CROSSCOPE_SERVER_METRICS_PORT"))
            except OSError as error:
                raise StartError(str(error.strerror)) from error
        await prompts_change(is_alive=False)
        await healths.set(_JOBS, _SERVING if settings.queue_url else _NOT_SERVING)
        for name in (_LATENTS, _LOOKS, _ANNOTATIONS, _SYSTEM, ""):
            await healths.set(name, _SERVING)
        await server.start()
        stack.push_async_callback(_stop, server)
        stack.push_async_callback(healths.enter_graceful_shutdown)
        workers.start()
        if settings.allow_anyone:
            log.warning("anyone who reaches the address may do everything", extra={"listen": settings.listen})
        else:
            for address in filter(None, (settings.listen, settings.socket)):
                stack.enter_context(noted(address, port, settings.home))
        facts = {"listen": settings.listen, "port": port, "home": str(settings.home), "workers": settings.workers}
        log.info("serving", extra=facts)
        yield Running(server, port)


async def _shelf(stack: contextlib.AsyncExitStack, settings: Settings) -> Shelf:
    """The published things of the home; with a store, after the first look at it or a moment."""
    shelf = settings.shelf()
    following = Following(shelf)
    following.start()
    stack.callback(following.stop)
    await asyncio.to_thread(following.wait, _FIRST_LOOK_S)
    return shelf


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


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    listen = settings.listen
    try:
        if settings.tls_cert is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, _credentials(settings))
    except RuntimeError as error:
        raise StartError(_why_not(settings)) from error
    if port == 0:
        raise StartError(_why_not(settings))
    return port


def _bind_private(server: grpc.aio.Server, socket: str) -> None:
    """Listens on a socket that is its owner's alone (0600). Raises StartError."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(socket)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {socket}; set CROSSCOPE_SERVER_SOCKET to another path") from error
    finally:
        os.umask(before)


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    """The server's certificate, and the authority of its clients. Raises StartError."""
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}; see CROSSCOPE_SERVER_TLS_CERT") from error
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _why_not(settings: Settings) -> str:
    sentence = (
        f"cannot listen on {settings.listen}: it is in use or not an address; set CROSSCOPE_SERVER_LISTEN to a free one"
    )
    if settings.tls_cert is None:
        return sentence
    return f"{sentence}; or {settings.tls_cert} and {settings.tls_key} are no certificate with its key, in PEM"
