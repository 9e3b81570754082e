"""The process that is connected to a Ray cluster, as a job sees it: started, asked, ended.

Ray lives apart from the job: it takes over signals, and ends its process when the cluster goes away. All that this
process has started in the cluster ends with it, however it ends, within a second or two.
"""

import importlib.util
import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

from crosscope_worker.cluster.devices import Node
from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.recipes.rank_reports import Elsewhere

ANSWER_S = 3.0
"""How long each address of a cluster's host may take to take a connection."""
CONNECT_S = 30.0
"""How long Ray, once it is loaded, may take to connect."""
_CLOSE_S = 3.0
"""How long the process may take to leave the cluster before it is killed."""

Tell = Callable[[object], None]
"""What work calls to tell the job something on its way."""
Hear = Callable[[Any], None]
"""What gets it in the job's process."""


class Driver:
    """A process connected to a cluster. A context: at its end the process is gone, and what it started there."""

    def __init__(self, address: str) -> None:
        """Connects to the cluster at `address`, host:port.

        Raises ClusterError if nobody answers there, if Ray is not installed, or if the cluster runs other versions.
        """
        check_answers(address)
        if importlib.util.find_spec("ray") is None:
            raise ClusterError(
                f"the job should run on the Ray cluster at {address}, but Ray is not installed here; install "
                "crosscope-worker[ray], or unset CROSSCOPE_WORKER_RAY_ADDRESS"
            )
        context = multiprocessing.get_context("spawn")
        self._address = address
        self._pipe, other = context.Pipe()
        # Imported by name there, so that this process does not load Ray.
        self._process = context.Process(target=_serve, args=(address, other, os.getpid()), name="ray", daemon=True)
        self._process.start()
        other.close()
        until = float("inf")

        def loaded(_: object) -> None:
            nonlocal until
            until = time.monotonic() + CONNECT_S

        def idle() -> None:
            if time.monotonic() > until:
                raise ClusterError(_unanswered(address, f"within {CONNECT_S:.0f} s"))

        try:
            self.nodes = [Node(*each) for each in self._result(loaded, idle)]
            """The nodes of the cluster when it was connected to."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, work: str, arguments: tuple[Any, ...], hear: Hear, idle: Callable[[], None] = lambda: None) -> Any:
        """The result of `work(tell, *arguments)`, called in the process; `hear` gets what it tells.

        `work` is module:function, so that Ray is loaded there alone. `idle` is called each second without news.
        Raises what `work`, `hear` and `idle` raise, and ClusterError if the process ends.
        """
        self._pipe.send((work, arguments))
        return self._result(hear, idle)

    def close(self) -> None:
        """Leaves the cluster, which ends what runs there."""
        self._pipe.close()
        self._process.terminate()
        self._process.join(_CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _result(self, hear: Hear, idle: Callable[[], None]) -> Any:
        while True:
            try:
                heard = self._pipe.recv() if self._pipe.poll(1.0) else None
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                self._process.join(_CLOSE_S)
                raise ClusterError(
                    f"the connection to the Ray cluster at {self._address} was lost (its process ended with "
                    f"{self._process.exitcode}); see that the cluster runs, and retry the job"
                ) from error
            if heard is None:
                idle()
                continue
            kind, what = heard
            if kind == "result":
                return what
            if kind == "failed":
                error, told = pickle.loads(what[0]), what[1]  # from our own process
                raise error from Elsewhere(f"in another process:\n{told}")
            hear(what)


def check_answers(address: str) -> None:
    """Raises ClusterError, within seconds, if `address` is not host:port or nothing listens there."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise ClusterError(
            f"CROSSCOPE_WORKER_RAY_ADDRESS is {address!r}, which is not host:port; give the address that "
            "`ray start --address` takes, and run that on the job worker's machine too"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_unanswered(address, f"({error})")) from error


def _unanswered(address: str, how: str) -> str:
    return (
        f"no Ray cluster answers at {address} {how}; start one with `ray start`, or mend or unset "
        "CROSSCOPE_WORKER_RAY_ADDRESS"
    )


def _serve(address: str, pipe: Connection, parent_pid: int) -> None:
    from crosscope_worker.cluster.connected import serve

    serve(address, pipe, parent_pid)
