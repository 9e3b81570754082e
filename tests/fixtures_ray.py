"""A Ray cluster of two nodes on this machine.

Everything listens on the loopback interface and asks for a token; nothing is told to anybody. All that belongs to the
cluster is ended with it: its processes have its folder in their environment.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
NODES = """
import json
import sys
from ray.cluster_utils import Cluster

node = {
    "node_ip_address": "127.0.0.1",
    "num_cpus": 1,
    "object_store_memory": 80_000_000,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
print(cluster.address, flush=True)
added = None
for line in sys.stdin:
    if added is None:
        added = cluster.add_node(**node, env_vars=json.loads(line))
    else:
        cluster.remove_node(added)
        added = None
    print(flush=True)
cluster.shutdown()
"""
"""A program: two nodes with a CPU each, until its standard input ends. Prints the cluster's address. A line of input
adds a node with these variables, JSON, the next one takes it away; then it prints an empty line."""


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    address: str
    folder: Path
    environment: Mapping[str, str]
    """Of each process that uses the cluster."""
    starter: "subprocess.Popen[str]"

    @contextmanager
    def node(self, **variables: str) -> Iterator[None]:
        """Within it there is a third node, whose processes have `variables` in their environment."""
        self._ask(json.dumps(variables))
        try:
            yield
        finally:
            self._ask("")

    def _ask(self, line: str) -> None:
        assert self.starter.stdin is not None
        assert self.starter.stdout is not None
        self.starter.stdin.write(f"{line}\n")
        self.starter.stdin.flush()
        assert self.starter.stdout.readline() == "\n"

    def ranks(self) -> list[psutil.Process]:
        """The processes that run ranks of trainings."""
        return [each for each in _processes(self.folder) if "ray::RayTrainWorker" in _title(each)]


@contextmanager
def ray_cluster(**variables: str) -> Iterator[RayCluster]:
    """Starts a cluster whose processes have `variables` in their environment."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: paths of sockets have at most 107 bytes
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Elsewhere 127.0.0.1 is replaced by an address that others reach.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        **variables,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    of_nodes = {
        **inherited,
        **environment,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]),
    }
    log = folder / "log"
    with log.open("wb") as errors:
        starter = subprocess.Popen(
            [sys.executable, "-c", NODES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=of_nodes,
            text=True,
            start_new_session=True,
        )
    assert starter.stdin is not None
    assert starter.stdout is not None
    try:
        address = starter.stdout.readline().strip()
        assert address, log.read_text()
        yield RayCluster(address, folder, environment, starter)
    finally:
        starter.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            starter.wait(20)
        starter.stdout.close()
        left = _processes(folder)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 5)  # so that none writes below the folder any more
        starter.kill()
        starter.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[psutil.Process]:
    """The living processes that have the folder of a cluster in their environment, but for this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_ours = process.environ().get("RAY_TMPDIR") == str(folder) and process.pid != os.getpid()
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
