"""How many ranks and parts a cluster takes, by hand."""

import pytest

from crosscope_worker.cluster.devices import Node, cpus_each, kind_of, num_devices, num_ranks, num_workers
from crosscope_worker.cluster.errors import ClusterError

CPUS = (Node(4, 0), Node(3, 0), Node(0, 0))
GPUS = (Node(32, 8), Node(16, 2), Node(64, 0))


def test_devices_are_gpus_where_there_is_one() -> None:
    assert (kind_of(CPUS), num_devices(CPUS), num_workers(CPUS)) == ("cpu", 7, 2)
    assert (kind_of(GPUS), num_devices(GPUS), num_workers(GPUS)) == ("cuda", 10, 10)
    assert (kind_of(()), num_devices(()), num_workers(())) == ("cpu", 0, 0)


@pytest.mark.parametrize(
    ("number", "nodes", "cpus"),
    [
        (1, CPUS, 4),
        (2, CPUS, 3),  # on 4 and 3
        (3, CPUS, 2),  # 2 + 1
        (4, CPUS, 1),
        (8, CPUS, 0),
        (1, GPUS, 32),  # the node of 64 has no GPU
        (8, GPUS, 5),  # 6 on the first, 2 on the second; with 6 it would be 5 and 2
        (10, GPUS, 4),
        (11, GPUS, 0),
    ],
)
def test_processes_share_the_cpus(number: int, nodes: tuple[Node, ...], cpus: int) -> None:
    assert cpus_each(number, nodes) == cpus


def test_as_many_ranks_as_are_asked_for_or_none() -> None:
    assert num_ranks("auto", CPUS) == 2
    assert num_ranks(7, CPUS) == 7
    assert num_ranks("auto", GPUS) == 10
    with pytest.raises(ClusterError, match=r"training.devices is 8, but the Ray cluster has 7 CPUs, and no GPU; lower"):
        num_ranks(8, CPUS)
    with pytest.raises(ClusterError, match=r"is 11, but the Ray cluster has 10 GPUs; lower it to 10, set it to auto"):
        num_ranks(11, GPUS)
    with pytest.raises(ClusterError, match="add a node"):
        num_ranks("auto", ())
