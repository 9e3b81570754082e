"""Which software the nodes of a cluster have, and whether it is the job worker's. Knows nothing of what runs there."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crosscope_worker.cluster.connected import devices_of
from crosscope_worker.cluster.devices import has_device, kind_of
from crosscope_worker.cluster.errors import ClusterError

_SOFTWARE = ("crosscope-worker", "crosscope-proto", "torch", "transformers")
"""What has to be the same on all machines; Ray compares itself and Python."""
NODE_S = 120.0
"""How long nodes may take to say what they have: each starts a process for it."""


def versions() -> dict[str, str]:
    """The versions here of what has to be the same everywhere; a build for the CPU is like one for CUDA."""
    return {package: version(package).partition("+")[0] for package in _SOFTWARE}


def check_versions(asked: Mapping[str, str]) -> None:
    """Raises ClusterError if this machine has other versions than the job worker, whose are `asked`."""
    if said := difference(ray.util.get_node_ip_address(), versions(), asked):
        raise ClusterError(said)


def difference(address: str, found: Mapping[str, str], asked: Mapping[str, str]) -> str:
    """What a node has and what it should have, in a sentence; empty if it has the versions that are `asked`.

    `found`: version by package; a package that is missing is not in it, and one that is broken has its error.
    """
    for package, wanted in asked.items():
        if found.get(package) != wanted:
            has = f"{package} {found[package]}" if package in found else f"no {package}"
            return (
                f"node {address} of the Ray cluster has {has}, and the job worker has {wanted}; install "
                f"{package}=={wanted} there, for the Python that `ray start` uses"
            )
    return ""


class NodeCheck:
    """Asks each node of the cluster once which software it has, before Ray starts anything of ours there.

    What Ray cannot import it would start again without end.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def __call__(self) -> None:
        """Asks the nodes that have devices, and this one, unless they were asked before.

        Raises ClusterError for the first that has other software than this process, or does not answer.
        """
        wanted, until = versions(), time.monotonic() + NODE_S
        for node, answer in [(node, _ask(node["NodeID"], wanted)) for node in self._new()]:
            address = node["NodeManagerAddress"]
            try:
                found = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
            except Exception as error:  # Ray has many, and raises those of the node too.
                why = f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"
                raise ClusterError(
                    f"node {address} of the Ray cluster could not be asked which software it has ({why}); see its logs "
                    "in Ray's folder, or take it out of the cluster"
                ) from error
            if sentence := difference(address, found, wanted):
                raise ClusterError(sentence)
            self._asked.add(node["NodeID"])

    def _new(self) -> list[dict[str, Any]]:
        """The nodes that are to be asked, in Ray's description."""
        alive, here = [each for each in ray.nodes() if each["Alive"]], ray.get_runtime_context().get_node_id()
        kind = kind_of([devices_of(each) for each in alive])
        return [
            each
            for each in alive
            if each["NodeID"] not in self._asked and (each["NodeID"] == here or has_device(devices_of(each), kind))
        ]


def _ask(node_id: str, packages: Iterable[str]) -> ray.ObjectRef[dict[str, str]]:
    """What a node will have answered."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    asked = ray.remote(_asker()).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    return asked.remote(tuple(packages))


def _asker() -> Callable[[Sequence[str]], dict[str, str]]:
    """What a node runs to say its versions. Made in a function, so that Ray sends its code and not its name."""

    def found(packages: Sequence[str]) -> dict[str, str]:
        import importlib
        from importlib.metadata import PackageNotFoundError, version

        versions: dict[str, str] = {}
        for package in packages:
            try:
                versions[package] = version(package).partition("+")[0]
                if package.startswith("crosscope"):
                    importlib.import_module(package.replace("-", "_"))
            except PackageNotFoundError:
                continue
            except Exception as error:  # whatever importing may raise
                versions[package] = f"{versions[package]} that cannot be imported ({type(error).__name__}: {error})"
        return versions

    return found
