"""Builds the inference process from its settings, runs it and drains it. The only module here that reads settings."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformers.utils import logging as transformers_logging

from crosscope_proto.beats import Beats
from crosscope_proto.ending import WRONG_SETTINGS, end_within
from crosscope_proto.exposition import expose
from crosscope_proto.handlers import ByName
from crosscope_proto.healths import Healths
from crosscope_proto.logs import configure_logging
from crosscope_proto.settings import SettingsError, read_settings
from crosscope_proto.tracing import configure_tracing
from crosscope_proto.worker.v1 import inference_pb2_grpc
from crosscope_store.following import Following
from crosscope_worker.device_use import DeviceUse
from crosscope_worker.serve.access import TokenInterceptor
from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.generation import Generations
from crosscope_worker.serve.metrics import DeviceThread, Metrics
from crosscope_worker.serve.models import Models, allocated_bytes, device_bytes
from crosscope_worker.serve.pulse import STUCK_ON_CPU_S, STUCK_ON_GPU_S, Pulse
from crosscope_worker.serve.questions import DeviceQueue, ask
from crosscope_worker.serve.requests import RequestInterceptor
from crosscope_worker.serve.servicer import Inference
from crosscope_worker.serve.settings import ServeSettings

SERVICE = "crosscope.worker.v1.Inference"
DRAIN_S = 3.0
"""How long calls in progress may take to end after SIGTERM."""
_LAST_REPLIES_S = 0.2
_REST_S = 0.8
"""Time for the rest of the process, so that it ends before its supervisor kills it."""
_SWITCH_S = 0.001
"""How long a thread that tokenises, for instance, may keep the event loop from the interpreter."""
_CACHE_SHARE = 8
"""One part of so many of the device's memory is for keys and values, if nothing is set."""
_OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 256 * 1024 * 1024),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]

log = logging.getLogger(__name__)


class StartError(Exception):
    """The process cannot start; the message says why."""


class InferenceProcess:
    """The inference service with everything that it runs on. Call `start`, then `stop`, once each."""

    def __init__(self, settings: ServeSettings, beats: Beats | None = None) -> None:
        """`beats` are for whoever started the process; None: nobody listens."""
        self._listen = settings.listen
        beats = beats or Beats(None)
        self._token = settings.token.get_secret_value() if settings.token else None
        self.metrics = Metrics(beats.ages)
        self._device_thread = DeviceThread(self.metrics)
        self._tokenising_threads = ThreadPoolExecutor(2, thread_name_prefix="tokenise")
        self._long_prompts_thread = ThreadPoolExecutor(1, thread_name_prefix="long-prompts")
        shelf = settings.shelf()
        self._following = Following(shelf)
        self.models = Models(
            settings.home, settings.device, settings.max_model_bytes, self._device_thread, settings.float32, shelf
        )
        devices = self.models.placement.devices
        use = DeviceUse(list(map(str, devices)))
        self.batcher: DeviceQueue = Batcher(
            ask,
            self._device_thread,
            settings.max_batch_tokens,
            settings.max_queued_tokens,
            self.metrics.ran_batch,
        )
        self.generations = Generations(
            self._device_thread,
            settings.max_cache_bytes or min(map(device_bytes, devices)) // _CACHE_SHARE,
            settings.prefill_tokens,
            settings.max_queued_generations,
            settings.max_unread_bytes,
        )
        self._servicer = Inference(
            self.models,
            self.batcher,
            self.generations,
            self._tokenising_threads,
            self._long_prompts_thread,
            settings.max_prompt_tokens,
            self.metrics,
            use,
        )
        self.metrics.watch_memory(
            lambda: self.batcher.queued_tokens,
            lambda: self.models.used_bytes,
        )
        for each in devices:
            self.metrics.watch_device(str(each), functools.partial(allocated_bytes, each), device_bytes(each))
        self.metrics.watch_use(use)
        self._metrics_port = settings.metrics_port
        self._end_metrics: Callable[[], None] | None = None
        self._health = Healths()
        self._server: grpc.aio.Server | None = None
        usual_s = STUCK_ON_CPU_S if any(each.type == "cpu" for each in devices) else STUCK_ON_GPU_S
        self._pulse = Pulse(
            self._device_thread,
            settings.stuck_after_s or usual_s,
            lambda: self.models.is_loading,
            self._tell_health,
            beats,
        )
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens, reports SERVING and returns the port (1 for a socket). Raises StartError if the address is taken."""
        interceptors: list[grpc.aio.ServerInterceptor] = [RequestInterceptor()]
        if self._token:
            interceptors.insert(0, TokenInterceptor(self._token))
        self._server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
        methods: Any = ByName(self._server)
        inference_pb2_grpc.add_InferenceServicer_to_server(self._servicer, methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        try:
            with _private_sockets():
                port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen at {self._listen}: it is in use or not allowed; set CROSSCOPE_WORKER_LISTEN"
            ) from error
        if self._metrics_port is not None:
            try:
                self._end_metrics = expose(self.metrics.registry, self._metrics_port, "CROSSCOPE_WORKER_METRICS_PORT")
            except OSError as error:
                raise StartError(error.strerror) from error
        self._following.start()
        await self._server.start()
        await self._tell_health(serves=True)
        self._beating = asyncio.create_task(self._pulse.run())
        return port

    async def _tell_health(self, serves: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def idle(self) -> None:
        """Waits until no call of our own service is in progress, a stream no more than any other."""
        await self._servicer.idle.wait()

    async def stop(self) -> None:
        """Reports NOT_SERVING, lets calls in progress end for up to DRAIN_S, then ends the rest."""
        await self._health.enter_graceful_shutdown()
        # Health watches never end by themselves, so only calls of our own service are waited for.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle(), DRAIN_S)
        if self._server is not None:
            await self._server.stop(_LAST_REPLIES_S)
        if self._beating is not None:
            self._beating.cancel()
        if self._end_metrics is not None:
            await asyncio.to_thread(self._end_metrics)
        self.models.close()
        self._following.stop()
        for thread in (self._device_thread, self._tokenising_threads, self._long_prompts_thread):
            thread.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _private_sockets() -> Generator[None]:
    """Sockets that are made meanwhile are their owner's alone (0600)."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def run() -> int:
    """Serves until SIGTERM or SIGINT; the exit code is 1 or WRONG_SETTINGS if it could not start."""
    try:
        settings = read_settings(ServeSettings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTINGS
    configure_logging("inference")
    configure_tracing("inference")
    transformers_logging.disable_progress_bar()
    torch.set_num_interop_threads(1)
    sys.setswitchinterval(_SWITCH_S)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    try:
        asyncio.run(_serve(settings))
    except StartError as error:
        log.error(str(error))
        return 1
    # A load or a forward pass in a thread cannot be interrupted and has nothing to save, so nothing waits for it.
    sys.stderr.flush()
    os._exit(0)


async def _serve(settings: ServeSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    process = InferenceProcess(settings, Beats.from_environment())
    await process.start()
    where = {"listen": settings.listen, "device": settings.device, "home": str(settings.home)}
    log.info("serving", extra=where)
    await stop.wait()
    log.info("stopping")
    end_within(DRAIN_S + _REST_S)
    await process.stop()
