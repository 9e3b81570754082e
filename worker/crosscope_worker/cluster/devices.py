"""How many devices the nodes of a cluster have, and how many CPUs go with each. Pure functions, without Ray."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crosscope_worker.cluster.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has, used or not."""

    cpus: float
    gpus: float


def kind_of(nodes: Sequence[Node]) -> str:
    """The kind of the devices on which work runs: "cuda" where the cluster has GPUs, else "cpu"."""
    return "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"


def has_device(node: Node, kind: str) -> bool:
    """Whether a node has a device of a kind, "cuda" or "cpu"."""
    return (node.gpus if kind == "cuda" else node.cpus) >= 1


def num_devices(nodes: Sequence[Node]) -> int:
    """Number of GPUs of the cluster; without any, of CPUs."""
    return sum(int(node.gpus if kind_of(nodes) == "cuda" else node.cpus) for node in nodes)


def num_workers(nodes: Sequence[Node]) -> int:
    """How many things run side by side, each with a device: one a GPU, or, without any, one a node that has a CPU."""
    if kind_of(nodes) == "cuda":
        return num_devices(nodes)
    return sum(has_device(node, "cpu") for node in nodes)


def num_ranks(wanted: int | Literal["auto"], nodes: Sequence[Node]) -> int:
    """How many ranks a training has that asks for `wanted` devices. Raises ClusterError if there are not as many."""
    there, what = num_devices(nodes), "GPUs" if kind_of(nodes) == "cuda" else "CPUs, and no GPU"
    if wanted == "auto":
        if not (number := num_workers(nodes)):
            raise ClusterError("the Ray cluster has neither a GPU nor a CPU for training.devices: auto; add a node")
        return number
    if wanted > there:
        raise ClusterError(
            f"training.devices is {wanted}, but the Ray cluster has {there} {what}; lower it to {max(1, there)}, set "
            "it to auto, or add nodes"
        )
    return wanted


def cpus_each(number: int, nodes: Sequence[Node]) -> int:
    """The most CPUs that each of `number` processes can have, with a GPU each where the cluster has any.

    0 if there are too few for one each.
    """
    with_gpus = kind_of(nodes) == "cuda"

    def places(cpus: int) -> int:
        return sum(min(int(node.cpus // cpus), int(node.gpus) if with_gpus else number) for node in nodes)

    return next(cpus for cpus in itertools.count() if places(cpus + 1) < number)
