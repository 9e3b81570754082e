"""kill -9 of a training at any moment: a resumed training ends with the same weights as an undisturbed one."""

import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run

RECIPE = make_recipe(checkpoint_every=7, log_every=5)
NUM_BLOCKS = 200


def train_and_tell(folder: Path, told: Connection) -> None:
    """Trains in a process of its own: sends a message as each step begins, then saves the weights."""
    torch.set_num_threads(1)

    latest = 0

    def tell(_stage: str, _fraction: float, *_: Any, step: int = 0, **__: Any) -> None:
        nonlocal latest
        if step != latest:  # A checkpoint tells of its step once more.
            told.send(step)
        latest = step

    crosscoder = run(RECIPE, folder, PlantedSource(NUM_BLOCKS), tell).crosscoder
    torch.save([crosscoder.W_enc, crosscoder.b_enc, crosscoder.W_dec, crosscoder.b_dec], folder / "weights.pt")


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "crosscope_worker.training"])
    random_moments = random.Random(0)
    for folder in ("undisturbed", "killed"):
        (tmp_path / folder).mkdir()

    def start(folder: str) -> tuple[Any, Connection]:
        heard, told = context.Pipe(duplex=False)
        process = context.Process(target=train_and_tell, args=(tmp_path / folder, told))
        process.start()
        told.close()
        return process, heard

    def steps(heard: Connection) -> list[int]:
        seen: list[int] = []
        while True:
            try:
                seen.append(heard.recv())
            except EOFError:
                return seen

    process, heard = start("undisturbed")
    all_steps = steps(heard)
    process.join()
    assert process.exitcode == 0
    assert all_steps == list(range(1, 314))

    reached = 0
    for kill in range(10):
        process, heard = start("killed")
        first = heard.recv()
        assert first > reached - 2 * 7  # at most one checkpoint's steps are done again, and the one being written
        reached = first
        while reached < 28 * (kill + 1):
            reached = heard.recv()
        time.sleep(random_moments.uniform(0, 0.02))  # any moment of a step or of a checkpoint
        process.kill()
        process.join()
        reached = max([reached, *steps(heard)])
        assert process.exitcode == -9
    process, heard = start("killed")
    assert steps(heard)[-1] == 313
    process.join()
    weights = [torch.load(tmp_path / folder / "weights.pt") for folder in ("undisturbed", "killed")]
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)
