"""The training loop on two real ranks of gloo: one rank's weights and curves, checkpoints, and how all stop."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fixtures_training import PlantedSource, make_recipe
from torch import Tensor

from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.recipes import ranks as tasks
from crosscope_worker.recipes.ranks import RankTask, check_alike
from crosscope_worker.training import TrainingError, saved_result, train_together
from crosscope_worker.training.checkpoint import load_checkpoint
from crosscope_worker.work import Stopped, silent

SPEC = {"variant": "batch_topk", "num_latents": 25, "k": 2}
SIZES = (20, 9, 30)
"""Blocks of each stream."""


def recipe(streams: int) -> CrosscoderRecipe:
    return make_recipe(
        SPEC,
        streams=streams,
        batch_size=50,
        checkpoint_every=25,
        normalise_inputs=True,
        decay_share=0.3,
        max_steps=None,
    )


class Short(PlantedSource):
    """A source of so many blocks, for which memory is missing from one of them on."""

    def __init__(self, num_blocks: int, fails_at: int = 1000) -> None:
        super().__init__(num_blocks, block_tokens=60)
        self._fails_at = fails_at

    def blocks(self) -> Generator[Tensor]:
        for index, block in enumerate(super().blocks()):
            if index == self._fails_at:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            yield block


def trained(folder: Path, streams: int, ranks: Ranks = ALONE, progress: Any = silent, fails_at: int = 1000) -> None:
    sources = [Short(size, fails_at) for size in SIZES[:streams][ranks.share(streams)]]
    with torch.no_grad():
        train_together(recipe(streams), sources, (8, 8), folder, progress, "cpu", ranks)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks, found = Ranks.of_process_group(), dict[str, str]()
    trained(folder / "three", 3, ranks)
    trained(folder / "one", 1, ranks)  # the second rank has no stream

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if rank == 0 and step == 30:
            raise Stopped("enough")

    try:
        trained(folder / "stopped", 3, ranks, stop)
    except Stopped as error:
        found["stopped"] = str(error)
    trained(folder / "stopped", 3, ranks)
    if rank == 1:
        tasks.version = lambda package: "2.0.0" if package == "torch" else "1"
    try:
        check_alike(RankTask("{}", "", "", "cpu"), ranks)
    except TrainingError as error:
        found["versions"] = str(error)
    try:
        trained(folder / "memory", 3, ranks, fails_at=12 if rank == 1 else 1000)
    except (TrainingError, RuntimeError) as error:
        found["memory"] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of trainings on two ranks, and what each rank met."""
    made = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (made,), nprocs=2)
    return made


@pytest.mark.parametrize(("name", "streams"), [("three", 3), ("one", 1), ("stopped", 3)])
def test_two_ranks_have_the_weights_and_curves_of_one(folder: Path, tmp_path: Path, name: str, streams: int) -> None:
    trained(tmp_path, streams)
    one, two = (saved_result(recipe(streams), (8, 8), each) for each in (tmp_path, folder / name))
    assert one is not None
    assert two is not None
    for weight in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(
            getattr(two.crosscoder, weight), getattr(one.crosscoder, weight), rtol=0, atol=1e-6, msg=weight
        )
    assert (two.tokens, two.steps, two.sources) == (one.tokens, one.steps, one.sources)
    assert two.tokens == 60 * sum(SIZES[:streams])
    assert two.crosscoder.input_scale == one.crosscoder.input_scale
    curves = [[row for row in each.curves if row[1] != "tokens_per_second"] for each in (one, two)]
    for (step, figure, value), (step_of_two, figure_of_two, value_of_two) in zip(*curves, strict=True):
        assert (step, figure) == (step_of_two, figure_of_two)
        assert value_of_two == pytest.approx(value, rel=1e-4, abs=1e-5), (step, figure)


def test_a_checkpoint_of_two_ranks_is_read_by_any_number(folder: Path) -> None:
    saved = load_checkpoint(folder / "three", tasks.recipe_dict(recipe(3)))
    assert saved is not None
    names = frozenset({"encoder", "since_fired"})
    whole = saved.tensors(names, slice(0, 25))["encoder"]
    assert whole.shape == (25, 16)
    for number in (1, 2, 3, 4):
        rows = [saved.tensors(names, Ranks(rank, number).share(25))["encoder"] for rank in range(number)]
        assert torch.equal(torch.cat(rows), whole), number
    assert len(list(saved.folder.glob("latents-*"))) == 2
    assert not list((folder / "three").glob(".partial*"))


def test_how_all_ranks_stop(folder: Path) -> None:
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert [each["stopped"] for each in found] == 2 * ["the training was stopped on all devices"]
    versions = [each["versions"] for each in found]
    assert versions[0] == versions[1]
    assert versions[0].startswith("rank 1 has crosscope-worker 1 and rank 0 has ")
    assert found[1]["memory"].startswith("TrainingError: memory ran out; training takes about ")
    assert found[0]["memory"].startswith("RuntimeError: ")
    assert "gloo" in found[0]["memory"], "by this the launcher knows that another rank is the cause"
