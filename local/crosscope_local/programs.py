"""The processes of an installation: their commands and settings. Starts none of them."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from crosscope_local.child import Program
from crosscope_local.readiness import grpc_serving, http_answers, redis_answers
from crosscope_proto import environment

PARTS = {"crosscope_server": "./server", "crosscope_worker": "./worker"}
"""Modules that the processes run, and what of crosscope's source installs each."""
APP_PARTS = {"streamlit": "'./client[app]'", "plotly": "'./client[app]'"}
"""Further modules that the app needs."""

APP_TLS, APP_LOGIN = "CROSSCOPE_APP_TLS_CERT", "CROSSCOPE_APP_LOGIN"
"""Settings of the app that decide its address."""

_MODELS = (environment.WORKER, environment.COMPUTE, environment.HUB, environment.HUB_ACCESS, environment.TRACES)
"""Environment variables of the workers: their settings, and those that torch and the hub's client read."""
_JOBS_METRICS = "CROSSCOPE_WORKER_JOBS_METRICS_PORT"
_PROMPTS = "crosscope.v1.Prompts"
"""The service of the server that is ready as soon as the server has found a worker."""

_ALONE = ("queue", "cache", "app")
"""Programs that read and write nothing of what is published."""
_ANSWERS_WITHIN_S = {"queue": 30.0, "cache": 10.0, "app": 30.0}
"""After how long without an answer a process is restarted. A queue on a slow disk waits for each write. The other
processes beat by themselves, each part with its own time."""


@dataclass(frozen=True)
class Installation:
    """What runs, and where it listens."""

    home: Path
    host: str
    port: int
    app_port: int | None
    """None: no app."""
    runtime: Path
    """Private folder for sockets."""
    data_roots: tuple[Path, ...] = ()
    """Folders beside the home from which jobs may read files."""
    job_threads: int | None = None
    """Threads of one operation of a job; None: the environment decides, else torch."""
    job_workers: int = 1
    """Jobs that run at the same time."""
    label_addresses: tuple[str, ...] = ()
    """Addresses on other machines that jobs may have label latents."""
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of each program, settings that hold unless its environment says otherwise: variables and their values."""
    app_key: str = ""
    """The secret of the app's start address."""
    store: str | None = None
    """URL of the store that the home shares with others."""
    with_standby: bool = True
    """Whether a second inference worker waits, with torch loaded and no model, until the first one ends."""

    @property
    def own_address(self) -> str:
        """Address of the server for this person's processes: a private socket, with or without TLS elsewhere."""
        return f"unix:{self._socket('server')}"

    @property
    def address(self) -> str:
        """Address of the server for clients on this machine."""
        return authority(reachable(self.host), self.port)

    @property
    def app_url(self) -> str | None:
        """Address of the app in a browser, with its secret; None without the app."""
        if self.app_port is None:
            return None
        scheme = "https" if os.environ.get(APP_TLS) else "http"
        asks_for_key = (os.environ.get(APP_LOGIN) or "key") == "key"
        query = f"/?key={self.app_key}" if asks_for_key else ""
        return f"{scheme}://{authority(reachable(self.host), self.app_port)}{query}"

    def programs(self) -> list[Program]:
        """All processes, in the order in which they are first started."""
        programs = [self._redis("queue"), self._redis("cache"), self._server()]
        if self.app_port is not None:
            programs.append(self._app(self.app_port))
        programs += [self._worker(), *map(self._jobs, range(self.job_workers))]
        shared = [self._shared(program) if program.name not in _ALONE else program for program in programs]
        return [replace(program, defaults=self._defaults(program.name)) for program in shared]

    def _shared(self, program: Program) -> Program:
        """A program with the store's address and keys, if there is a store."""
        if self.store is None:
            return program
        environment_of_store = {**program.environment, "CROSSCOPE_STORE": self.store}
        return replace(program, environment=environment_of_store, reads=(*program.reads, environment.STORE))

    def _defaults(self, name: str) -> Mapping[str, str]:
        """The settings of a program; all job workers have the same."""
        return self.settings.get("jobs" if name.startswith("jobs") else name, {})

    def _redis(self, role: str) -> Program:
        path = self._socket(role)
        folder = str(self.home / role)
        return Program(
            name=role,
            command=_module("crosscope_local.redis", role, "--folder", folder, "--socket", path),
            probe=redis_answers(path),
            answers=redis_answers(path),
            answers_within_s=_ANSWERS_WITHIN_S[role],
            stop_last=True,
            watch_log=False,
        )

    def _server(self) -> Program:
        return Program(
            name="server",
            command=_module("crosscope_server"),
            environment={
                "CROSSCOPE_HOME": str(self.home),
                "CROSSCOPE_SERVER_LISTEN": authority(self.host, self.port),
                "CROSSCOPE_SERVER_SOCKET": self.own_address,
                "CROSSCOPE_SERVER_WORKERS": f"unix:{self._socket('worker')}",
                "CROSSCOPE_SERVER_QUEUE_URL": f"unix://{self._socket('queue')}",
                "CROSSCOPE_SERVER_CACHE_URL": f"unix://{self._socket('cache')}",
            },
            reads=(environment.SERVER, environment.TRACES),
            probe=grpc_serving(self.own_address),
            after=("queue", "cache"),
        )

    def _app(self, port: int) -> Program:
        answers = http_answers(reachable(self.host), port, "/_stcore/health", tls=bool(os.environ.get(APP_TLS)))
        return Program(
            name="app",
            command=_module("crosscope.app"),
            environment={
                "CROSSCOPE_HOME": str(self.home),
                "CROSSCOPE_ADDRESS": self.own_address,
                "CROSSCOPE_APP_KEY": self.app_key,
                "CROSSCOPE_APP_HOST": self.host,
                "CROSSCOPE_APP_PORT": str(port),
            },
            reads=(environment.APP,),
            probe=answers,
            answers=answers,
            answers_within_s=_ANSWERS_WITHIN_S["app"],
        )

    def _worker(self) -> Program:
        target = f"unix:{self._socket('worker')}"
        answers, is_found = grpc_serving(target), grpc_serving(self.own_address, _PROMPTS)
        return Program(
            name="worker",
            command=_module("crosscope_worker", "serve"),
            environment={"CROSSCOPE_HOME": str(self.home), "CROSSCOPE_WORKER_LISTEN": target},
            reads=_MODELS,
            probe=lambda: answers() and is_found(),
            has_standby=self.with_standby,
        )

    def _jobs(self, place: int) -> Program:
        threads = {} if self.job_threads is None else {"CROSSCOPE_WORKER_JOB_THREADS": str(self.job_threads)}
        # One port shows the figures of one process: those of the first.
        silent = {_JOBS_METRICS: ""} if place else {}
        return Program(
            name=f"jobs-{place + 1}" if place else "jobs",
            command=_module("crosscope_worker", "jobs"),
            environment={
                "CROSSCOPE_HOME": str(self.home),
                "CROSSCOPE_WORKER_QUEUE_URL": f"unix://{self._socket('queue')}",
                "CROSSCOPE_WORKER_DATA_ROOTS": os.pathsep.join(map(str, self.data_roots)),
                "CROSSCOPE_WORKER_LABEL_ADDRESSES": ",".join(self.label_addresses),
                **threads,
                **silent,
            },
            reads=(*_MODELS, environment.LABEL_KEYS, environment.RAY),
            probe=None,
            after=("queue",),
        )

    def _socket(self, name: str) -> str:
        return str(self.runtime / f"{name}.sock")


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def reachable(host: str) -> str:
    """The host at which this machine reaches what listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def authority(host: str, port: int) -> str:
    """Host and port as one address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
