"""A training on two ranks through server, queue and job worker: watched, a rank killed, a full disk, cancelled."""

import json
import random
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from crosscope_proto.v1 import jobs_pb2
from crosscope_worker.training import newest_step
from tests.jobs.rig import Rig, is_alive, until
from tests.worker.recipes.test_train_on_ranks import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
kind: crosscoder
name: toy
pair: {{name: tiny, base: {pair}/base, chat: {pair}/chat}}
layer: 1
data: [{{name: web, source: jsonl, path: web.jsonl, text_column: text}}]
tokens: {{max_length: 64, held_out_every: 5}}
crosscoder: {{variant: batch_topk, num_latents: 63, k: 4}}
training: {{batch_size: 64, lr: 0.003, warmup_steps: 3, epochs: 10000, buffer_tokens: 512, log_every: 5, devices: 2,
            checkpoint_every: 5}}
"""


class RankRig(Rig):
    """A server and a job worker."""

    def __init__(self, pair: Path) -> None:
        super().__init__()
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 30))) for _ in range(60)]
        (self.home / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        self.start_redis()
        self.start_server()
        self._worker = self.start_real_worker(CROSSCOPE_WORKER_DATA_ROOTS=str(pair.parent))

    def watch(
        self, job_id: str, after: str = "", timeout_s: float = 400
    ) -> "grpc.CallIterator[jobs_pb2.WatchJobResponse]":
        """See Rig; a start takes its time on a busy machine."""
        return super().watch(job_id, after, timeout_s)

    def wait(self, job_id: str, timeout_s: float = 400) -> jobs_pb2.Job:
        """See Rig."""
        return super().wait(job_id, timeout_s)

    def ranks(self) -> list[psutil.Process]:
        """The ranks of the job that runs, in their order."""
        below = psutil.Process(self._worker.pid).children(recursive=True)
        found = [each for each in below if "spawn_main" in " ".join(each.cmdline())]
        assert len(found) == 2
        return sorted(found, key=lambda each: each.pid)

    def log(self, job_id: str) -> str:
        """The texts of the job's log."""
        lines = self.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(id=job_id, lines=1000)).lines
        return "\n".join(line.text for line in lines)

    def trains(self, job_id: str, after: int) -> float:
        """Waits until the job has told of a step behind `after`; the seconds that it took."""
        begun = time.monotonic()
        self.wait_for(job_id, lambda job: job.stage == "train" and step_of(job) > after)
        return time.monotonic() - begun


def step_of(job: jobs_pb2.Job) -> int:
    said = re.match(r"step (\d+)", job.message)
    return int(said[1]) if said else 0


@pytest.fixture
def rig(tiny_pair_folder: Path) -> Iterator[RankRig]:
    made = RankRig(tiny_pair_folder)
    yield made
    made.close()


def test_a_job_on_ranks(rig: RankRig, tiny_pair_folder: Path) -> None:
    request = jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE.format(pair=tiny_pair_folder))
    job_id = rig.jobs.SubmitJob(request, timeout=10).job.id
    checkpoints = rig.home / "jobs" / job_id / "checkpoints"
    # A watcher sees it train, in the middle of which a rank is killed.
    start_s = rig.trains(job_id, after=10)
    assert rig.get(job_id).metrics["loss"] > 0
    first = rig.ranks()
    first[1].send_signal(signal.SIGKILL)
    again = rig.wait_for(job_id, lambda job: "(start 2 of 4)" in job.message).message
    said = re.fullmatch(r"rank 1 was killed by signal 9; training goes on from step (\d+) \(start 2 of 4\)", again)
    assert said is not None, again
    again_s = rig.trains(job_id, after=int(said[1]))
    assert again_s < max(60, 2 * start_s), "on a busy machine the first start took longer too"
    assert again in rig.log(job_id)
    # The disk is full for rank 1: it may write no larger file.
    second = rig.ranks()
    resource.prlimit(second[1].pid, resource.RLIMIT_FSIZE, (1000, 1000))
    replies = list(rig.watch(job_id))
    ended, last = replies[-1].job, [event.id for reply in replies for event in reply.events][-1]
    assert ended.state == jobs_pb2.JOB_STATE_FAILED
    assert ended.message.startswith("rank 1 of 2: no room for the checkpoint of step "), ended.message
    assert not any(is_alive(process.pid) for process in (*first, *second))
    assert not (rig.home / "crosscoders").exists()
    step = newest_step(checkpoints)
    assert step is not None
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{step:09d}"], "whole ones alone"
    # It is tried again, goes on from there, and is cancelled in the middle.
    assert rig.retry(job_id).state == jobs_pb2.JOB_STATE_QUEUED
    going = (event for reply in rig.watch(job_id, after=last) for event in reply.events if "loss" in event.metrics)
    assert next(going).step == step + 5
    third = rig.ranks()
    rig.cancel(job_id)
    assert rig.wait(job_id).state == jobs_pb2.JOB_STATE_CANCELLED
    until(lambda: not any(is_alive(process.pid) for process in third), 10)
