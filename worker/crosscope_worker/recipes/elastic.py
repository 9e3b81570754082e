"""Launches the ranks of a training on this machine, by torch's elastic launcher (torchrun), and listens to them.

A rank reports through a pipe of its own. The processes meet in a file and talk on the loopback interface, so no port is
open to other machines. Knows nothing about what a rank does.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from crosscope_proto.beats import EVERY_S
from crosscope_proto.logs import configure_logging
from crosscope_proto.stages import Stage
from crosscope_worker.lifeline import die_with_parent
from crosscope_worker.phases import Following
from crosscope_worker.ranks import Ranks
from crosscope_worker.recipes.rank_ears import LAST_WORDS, Ears
from crosscope_worker.recipes.rank_reports import (
    LINGER_S,
    MAX_STARTS,
    error_of,
    is_of_the_group,
    last_words,
    starting_again,
)
from crosscope_worker.recipes.ranks import RankTask, RunRank
from crosscope_worker.training import TrainingError, remove_partial
from crosscope_worker.work import CHECKPOINTS, Progress, silent

_FAILED = 3
"""Exit code of a rank that has told its error."""
_TERMINATE_S = 5
"""How long a rank that is asked to end may take before it is killed."""
_TORCHS_LOGS = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


class ElasticLauncher:
    """A Launcher (recipes/ranks.py) of ranks on this machine."""

    def __init__(self, run: RunRank) -> None:
        """`run`: what each rank does; a process of its own imports it by name."""
        self._run = run

    def __call__(self, task: RankTask, num_ranks: int, progress: Progress) -> None:
        """See Launcher."""
        checkpoints = Path(task.folder) / CHECKPOINTS
        following, how = Following(progress, Stage.LOAD), ""
        for start in range(1, MAX_STARTS + 1):
            try:
                how = self._start(task, num_ranks, following)
            finally:
                remove_partial(checkpoints)
            if not how:
                return
            if start < MAX_STARTS:
                following.say(starting_again(how, checkpoints, start + 1))
        hint = " Signal 9 often means that memory ran out." if "signal 9" in how and "hung" not in how else ""
        raise TrainingError(f"{how}, at the last of {MAX_STARTS} starts.{hint}")

    def _start(self, task: RankTask, num_ranks: int, progress: Progress) -> str:
        """Starts all ranks and waits for their end; how one died, empty if the training has ended.

        Raises the error of a rank, and what `progress` raises.
        """
        with tempfile.TemporaryDirectory(prefix="crosscope-ranks-") as meeting, Ears(num_ranks, task.beat_s) as ears:
            agent = _Agent(self._run, task, Path(meeting), ears.pipes)
            agent.start()
            try:
                while agent.is_alive():
                    ears.hear(progress)
                while ears.hear(progress, 0):
                    pass
            finally:
                while agent.is_alive():  # The job is stopped.
                    ears.kill()
                    ears.hear(silent)
        if ears.errors:
            _, rank, what = min(ears.errors)  # the first
            raise error_of(rank, num_ranks, what)
        return _how(agent, ears)


class _Agent(threading.Thread):
    """The thread of torch's agent, which starts the processes, notices that one ends, and ends the others.

    Processes are tied to this thread, which lives until all of them have ended. As it is not the main thread, the agent
    takes no signal from the job's process.
    """

    def __init__(self, run: RunRank, task: RankTask, meeting: Path, pipes: Sequence[Connection]) -> None:
        super().__init__(name="ranks")
        self._run_rank, self._task, self._meeting, self._pipes = run, task, meeting, pipes
        self.failure: ChildFailedError | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Runs the ranks until all have ended."""
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(self._pipes),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=str(self._meeting / "agent"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(self._meeting / "logs")),
            shutdown_timeout=_TERMINATE_S,
        )
        threads = max(1, torch.get_num_threads() // len(self._pipes))
        arguments = self._run_rank, self._task, str(self._meeting), self._pipes, os.getpid(), threads
        for name in _TORCHS_LOGS:  # What they say of ranks that end is told in sentences.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            elastic_launch(config, _rank)(*arguments)
        except ChildFailedError as error:
            self.failure = error
        except BaseException as error:  # The job's thread raises it.
            self.error = error


def _how(agent: _Agent, ears: Ears) -> str:
    """How a rank died, as a part of a sentence; empty if none did."""
    if agent.error is not None:
        raise agent.error
    if agent.failure is None or ears.all_ended:
        return ""
    if ears.hung:
        return next(iter(ears.hung.values()))
    failures = agent.failure.failures
    is_ours = ears.killed and not failures.keys() & set(ears.left)
    if is_ours and ears.left:
        return f"rank {ears.left[0]} ended before its training"
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
    if failure.exitcode < 0 and not is_ours:
        return f"rank {rank} was killed by signal {-failure.exitcode}"
    if ears.lost:
        rank, said = next(iter(ears.lost.items()))
        return f"rank {rank} lost the others ({said})"
    return f"rank {rank} ended with exit code {failure.exitcode}"


def _rank(
    run: RunRank, task: RankTask, meeting: str, pipes: Sequence[Connection], parent_pid: int, threads: int
) -> None:
    """The process of one rank, which torch's agent starts."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging("job")
    for other, pipe in enumerate(pipes):
        if other != rank:
            pipe.close()
    teller = _Teller(pipes[rank])
    threading.Thread(target=teller.live, name="beats", daemon=True).start()
    try:
        device = _joined(task, rank, size, threads, meeting)
        run(task, Ranks.of_process_group(teller.fail), device, teller if rank == 0 else silent)
    except BaseException as error:  # The job's process raises it; a traceback here might repeat a prompt.
        teller.fail(error)
        if is_of_the_group(error):
            time.sleep(LINGER_S)
        os._exit(_FAILED)  # Python's own end would wait for threads, and the process group's for other ranks.
    teller.tell("ended", None)
    dist.destroy_process_group()


def _joined(task: RankTask, rank: int, size: int, threads: int, meeting: str) -> str:
    """Joins the process group, and gives the device of this rank."""
    torch.set_num_threads(threads)
    os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    device, backend = "cpu", "cpu:gloo"
    if task.device == "cuda":
        device, backend = f"cuda:{os.environ['LOCAL_RANK']}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}/group",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=task.silent_s),
    )
    return device


class _Teller:
    """The writing end of a rank's pipe, and the Progress of the first rank. Any thread may call."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock, self._has_ended = pipe, threading.Lock(), False
        self.tell("started", os.getpid())

    def tell(self, kind: str, what: object) -> None:
        """Sends something to the job's process; ends this one if that has ended."""
        try:
            with self._lock:
                if self._has_ended:
                    return
                self._has_ended = kind in LAST_WORDS
                self._pipe.send((kind, what))
        except OSError:
            os._exit(_FAILED)

    def fail(self, error: BaseException) -> None:
        """Tells the error that ends this rank, and when it came; of several the first."""
        kind, what = last_words(error)
        self.tell(kind, (time.monotonic(), what))

    def live(self) -> None:
        """Shows for ever that this process moves."""
        while not self._has_ended:
            time.sleep(EVERY_S)
            self.tell("lives", None)

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """See Progress. Raises nothing: a job that is stopped has its ranks killed."""
        named = {"step": step, "metrics": dict(metrics or {}), "rel_norms": list(rel_norms)}
        self.tell("progress", ((str(stage), fraction, message), named))
