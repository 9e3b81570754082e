"""The ranks of a training on a Ray cluster, by Ray Train, as the connected process and each rank see them.

Ray Train starts all ranks again when one dies; a rank that fails tells its error, and the job ends. Knows nothing of
the training itself.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crosscope_proto.logs import configure_logging
from crosscope_worker.cluster.connected import nodes
from crosscope_worker.cluster.devices import cpus_each, num_devices
from crosscope_worker.cluster.driver import Tell
from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.cluster.mailbox import EVERY_S, Mailbox, Teller
from crosscope_worker.cluster.software import NodeCheck, check_versions, versions
from crosscope_worker.ranks import Ranks
from crosscope_worker.recipes.rank_reports import LINGER_S, MAX_STARTS, is_of_the_group
from crosscope_worker.recipes.ranks import RankTask, RunRank
from crosscope_worker.training import remove_partial
from crosscope_worker.work import CHECKPOINTS, silent

FOLDER = "ray"
"""Folder below the job's checkpoints for what Ray Train notes of a run; no tensors."""
LOST = "lost the others"
"""What a rank says that cannot reach another one."""
WAITING_S = 30.0
"""How often it is said that ranks wait for devices."""


def train(tell: Tell, run: RunRank, task: RankTask, num_ranks: int) -> bool:
    """Runs the ranks until all have ended; tells (rank, kind, what). False if ranks died at each start.

    Raises ClusterError if Ray Train gives up for another reason, or if a node has other software than this process.
    """
    check_nodes = NodeCheck()
    check_nodes()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    started = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    mailbox = cast("ActorHandle[Mailbox]", started)
    callbacks: list[UserCallback] = [_Deaths(mailbox)]
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(task.beat_s)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"run": run, "task": task.to_json(), "mailbox": mailbox, "versions": versions()},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if task.device == "cuda" else "cpu:gloo", timeout_s=int(task.silent_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=num_ranks,
            use_gpu=task.device == "cuda",
            resources_per_worker={"CPU": cpus_each(num_ranks, nodes())} | ({"GPU": 1} if task.device == "cuda" else {}),
        ),
        run_config=RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=str(Path(task.folder) / CHECKPOINTS / FOLDER),
            failure_config=FailureConfig(max_failures=MAX_STARTS - 1),
            callbacks=callbacks,
        ),
    )
    fitting, waiting = _Fitting(trainer), _Waiting(num_ranks)
    fitting.start()
    while fitting.is_alive():
        if "died" in _deliver(mailbox, tell, waiting):
            check_nodes()  # Ranks may start on one that has come since.
        if sentence := waiting.sentence():
            tell((0, "waits", sentence))
        fitting.join(EVERY_S)
    _deliver(mailbox, tell, waiting)
    if fitting.error is None or isinstance(fitting.error, WorkerGroupError):
        return fitting.error is None
    said = " ".join(str(fitting.error).split())
    raise ClusterError(f"the ranks could not be run on the Ray cluster: {said[:500]}") from fitting.error


def _deliver(mailbox: ActorHandle[Mailbox], tell: Tell, waiting: "_Waiting") -> set[str]:
    """Passes letters on; which kinds there were."""
    letters = ray.get(mailbox.take.remote())
    for letter in letters:
        waiting.hear(letter[1])
        tell(letter)
    return {kind for _, kind, _ in letters}


class _Fitting(threading.Thread):
    """The thread that waits for Ray Train."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        """Runs the ranks until all have ended, or died at each start."""
        try:
            self._trainer.fit()
        except BaseException as error:  # The thread that listens raises it.
            self.error = error


class _Waiting:
    """Whether ranks wait to be started, and for what."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks, self._started, self._next = num_ranks, 0, time.monotonic() + WAITING_S

    def hear(self, kind: str) -> None:
        """Hears what kind of letter came."""
        if kind == "started":
            self._started += 1
        elif kind == "died":
            self._started, self._next = 0, time.monotonic() + WAITING_S

    def sentence(self) -> str:
        """What ranks wait for, if they do and it is time to say so."""
        if self._started >= self._num_ranks or time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + WAITING_S
        if (there := num_devices(nodes())) < self._num_ranks:
            return f"waiting for {self._num_ranks} devices: the Ray cluster has {there} now"
        return f"waiting for {self._num_ranks} free devices of the Ray cluster, which has {there}, and for their start"


class _Deaths(UserCallback):
    """Tells the job of ranks that died, from Ray Train's own process."""

    def __init__(self, mailbox: ActorHandle[Mailbox]) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Tells what ended ranks: dead ones first, then those that lost them."""
        said = sorted((_cause(error), rank) for rank, error in worker_exceptions.items())
        ray.get(self._mailbox.put.remote([(rank, "died", how) for (_, how), rank in said[:1]]))


def _cause(error: Exception) -> tuple[int, str]:
    """How a rank ended, as a part of a sentence, behind a number by which to sort: the process's own end first."""
    said, kind = str(error), type(error).__name__  # Ray Train keeps the classes to itself.
    if kind == "WorkerHealthCheckTimeoutError":
        return 0, "hung and was killed"
    if kind != "WorkerHealthCheckFailedError":
        return 2, LOST if LOST in said else f"failed ({' '.join(said.split())[-200:]})"
    if "its node has died" in said or "node died" in said.lower():
        return 0, "died with its node"
    return 1, "ran out of memory and was killed" if "memory pressure" in said else "died"


def _rank(config: Mapping[str, Any]) -> None:
    """The process of one rank, which Ray Train starts in torch's process group."""
    configure_logging("job")
    teller = Teller(config["mailbox"], dist.get_rank())
    ranks = Ranks.of_process_group(teller.fail)
    teller.tell("started", (ray.util.get_node_ip_address(), os.getpid()))
    try:
        check_versions(config["versions"])
        task = RankTask(**json.loads(config["task"]))
        if ranks.rank == 0:
            remove_partial(Path(task.folder) / CHECKPOINTS)  # Of ranks that died: all of that start have ended.
        dist.barrier()
        config["run"](task, ranks, str(ray.train.torch.get_device()), teller if ranks.rank == 0 else silent)
    except BaseException as error:  # Not raised: Ray would start all again, and log what may repeat a prompt.
        teller.fail(error)
        if is_of_the_group(error):
            time.sleep(LINGER_S)
            teller.close()
            raise RuntimeError(LOST) from None
        teller.tell("closed", None)
        teller.close()
        threading.Event().wait()  # until the job has ended this process
    teller.close()
