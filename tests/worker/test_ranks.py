"""Parts of things by rank, and what two real ranks of gloo send each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crosscope_worker.ranks import ALONE, Ranks


@pytest.mark.parametrize(
    ("number", "size", "parts"),
    [
        (7, 3, [(0, 3), (3, 5), (5, 7)]),
        (4, 2, [(0, 2), (2, 4)]),
        (1, 3, [(0, 1), (1, 1), (1, 1)]),
        (0, 2, [(0, 0)] * 2),
    ],
)
def test_share(number: int, size: int, parts: list[tuple[int, int]]) -> None:
    found = [Ranks(rank, size).share(number) for rank in range(size)]
    assert [(each.start, each.stop) for each in found] == parts


def test_one_rank_sends_nothing() -> None:
    x = torch.arange(3.0)
    assert ALONE.sum(x) is x
    assert ALONE.join(x) is x
    assert ALONE.once(x) is x
    assert torch.equal(ALONE.stack(x), x[None])
    assert ALONE.everyone("a") == ["a"]
    assert not dist.is_initialized()


def test_two_ranks(tmp_path: Path) -> None:
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (one.pop("once"), other.pop("once")) == ([3], [0])
    assert one == other
    assert one == {
        "stacked": [[0, 5], [1, 5]],
        "sum": [1.0, 3.0],
        "joined": [[0.0], [0.0], [1.0]],
        "none": [],
        "everyone": [[0], [1]],
    }


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks.of_process_group()
    found: dict[str, Any] = {
        "sum": ranks.sum(torch.tensor([rank, rank + 1.0])).tolist(),
        "stacked": ranks.stack(torch.tensor([rank, 5])).tolist(),
        "once": ranks.once(torch.tensor([3])).tolist(),
        "joined": ranks.join(torch.full((2 - rank, 1), float(rank))).tolist(),
        "none": ranks.join(torch.empty(0)).tolist(),
        "everyone": ranks.everyone([rank]),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
