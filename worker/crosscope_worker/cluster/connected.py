"""The process that is connected to a Ray cluster, from inside: it connects, and does what the job asks for.

Knows nothing of trainings or analyses.
"""

import importlib
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import ray

from crosscope_proto.logs import configure_logging
from crosscope_worker.cluster.devices import Node
from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.lifeline import die_with_parent
from crosscope_worker.recipes.rank_reports import pickled


def serve(address: str, pipe: Connection, parent_pid: int) -> None:
    """Tells that it is loaded, connects and gives the nodes; then does work after work, until the pipe is closed."""
    die_with_parent(parent_pid)
    configure_logging("job")
    lock = threading.Lock()

    def send(kind: str, what: object) -> None:
        try:
            with lock:
                pipe.send((kind, what))
        except OSError:  # The job has closed its end, and terminates this process.
            os._exit(0)

    def tell(what: object) -> None:
        send("told", what)

    try:
        tell("loaded")
        connect(address)
        send("result", [(node.cpus, node.gpus) for node in nodes()])
        while True:
            work, arguments = pipe.recv()
            module, _, name = work.partition(":")
            send("result", getattr(importlib.import_module(module), name)(tell, *arguments))
    except (EOFError, OSError):
        return
    except Exception as error:  # The job raises it; a traceback here might repeat a prompt.
        send("failed", (pickled(error), traceback.format_exc()))
    finally:
        ray.shutdown()


def connect(address: str) -> None:
    """Makes this process a driver of the cluster at `address`. Raises ClusterError."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and others of its own.
        raise ClusterError(sentence_of(error, address)) from error
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def sentence_of(error: Exception, address: str) -> str:
    """Why the cluster at `address` cannot be used."""
    said = " ".join(str(error).split())
    if said.startswith("Version mismatch:"):
        return (
            f"the Ray cluster at {address} runs other versions than this job worker; install the same ones on all "
            f"machines. {said.removeprefix('Version mismatch: ')}"
        )
    if "token" in said.lower() and "auth" in said.lower():
        return f"the Ray cluster at {address} refuses this job worker's token; set RAY_AUTH_TOKEN_PATH to the cluster's"
    return (
        f"the Ray cluster at {address} cannot be joined: {said[:300]}. The job worker's machine must be one of its "
        f"nodes: run `ray start --address={address}` there"
    )


def nodes() -> list[Node]:
    """The nodes of the cluster that live."""
    return [devices_of(each) for each in ray.nodes() if each["Alive"]]


def devices_of(node: Mapping[str, Any]) -> Node:
    """What a node has, of Ray's description of it."""
    return Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
