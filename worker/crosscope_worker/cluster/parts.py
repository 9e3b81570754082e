"""Parts of an analysis as Ray tasks, as the connected process and each task see them.

A task that dies is run again alone. Its error is told, not raised: Ray would log it, and it may repeat a prompt. Knows
nothing of what is measured.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from crosscope_proto.logs import configure_logging
from crosscope_worker.cluster.connected import nodes
from crosscope_worker.cluster.devices import cpus_each, kind_of, num_devices, num_workers
from crosscope_worker.cluster.driver import Tell
from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.cluster.software import NodeCheck, check_versions, versions
from crosscope_worker.recipes.parts import PartTask
from crosscope_worker.recipes.rank_reports import MAX_STARTS, pickled

MeasurePart = Callable[[PartTask, str], None]
"""What measures a part on a device (measuring.py)."""
_DEATHS = {
    OutOfMemoryError: "ran out of memory and was killed",
    NodeDiedError: "died with its node",
    LocalRayletDiedError: "died with its node",
    WorkerCrashedError: "died",
}
"""How a task ended that another try may mend."""
_WAIT_S = 0.5


def measure_parts(tell: Tell, measure: MeasurePart, tasks: Sequence[PartTask]) -> None:
    """Measures all parts; tells ("done", task), ("again", (task, how, start)) and ("waits", sentence).

    Tells ("failed", …) of a task's error. Raises ClusterError if a task died at each start, or if a node has other
    software than this process.
    """
    check_nodes = NodeCheck()
    check_nodes()
    submit = _submitter(measure)
    starts = dict.fromkeys((task.part for task in tasks), 1)
    running = {submit(task): task for task in tasks}
    while running:
        ended, _ = ray.wait(list(running), timeout=_WAIT_S)
        if not ended and not num_devices(nodes()):
            tell(("waits", "waiting for a device: the Ray cluster has none now"))
        for reference in ended:
            task = running.pop(reference)
            try:
                failed = ray.get(reference)
            except tuple(_DEATHS) as error:
                how = next(said for kind, said in _DEATHS.items() if isinstance(error, kind))
                if starts[task.part] == MAX_STARTS:
                    part = f"part {task.part + 1} of {task.num_parts} of the held-out texts"
                    raise ClusterError(
                        f"{part} {how} on the Ray cluster, at the last of {MAX_STARTS} starts"
                    ) from error
                check_nodes()
                starts[task.part] += 1
                tell(("again", (task, how, starts[task.part])))
                running[submit(task)] = task
            else:
                tell(("failed", failed) if failed else ("done", task))


def _submitter(measure: MeasurePart) -> Callable[[PartTask], ray.ObjectRef[Any]]:
    """What starts a task: with a GPU where the cluster has any, else with its share of a node's CPUs."""
    there = nodes()
    device, side_by_side = kind_of(there), max(1, num_workers(there))
    cpus, gpus = max(1, cpus_each(side_by_side, there)), 1 if device == "cuda" else 0
    remote = ray.remote(_measure).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    return lambda task: remote.remote(measure, asdict(task), device, versions())


def _measure(measure: MeasurePart, task: dict[str, Any], device: str, asked: dict[str, str]) -> Any:
    """A task: None, or the error, pickled, and its traceback."""
    configure_logging("job")
    try:
        check_versions(asked)
        measure(PartTask(**task), device)
    except Exception as error:
        return pickled(error), traceback.format_exc()
    return None
