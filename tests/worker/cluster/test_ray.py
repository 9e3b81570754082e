"""Ranks and parts on a real Ray cluster of two nodes: what dies, fails, is cancelled or has other versions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_ray import RayCluster, ray_cluster

from crosscope_worker.cluster.launcher import RayLauncher
from crosscope_worker.cluster.runner import RayRunner
from crosscope_worker.recipes.parts import PartTask
from crosscope_worker.recipes.ranks import RankTask
from crosscope_worker.work import Cancelled
from tests.jobs.rig import is_alive, until
from tests.worker.cluster.cluster_runs import STEPS, notes_part, sums_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """The cluster, whose variables this process has too."""
    with ray_cluster() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


def rank_task(folder: Path) -> RankTask:
    return RankTask("{}", str(folder), str(folder), "cpu")


def noted(folder: Path) -> dict[int, list[int]]:
    """Of each rank: its process, its last step, and the sum of that step."""
    return {int(path.name[-1]): [*map(int, path.read_text().split())] for path in sorted(folder.glob("rank-*"))}


def test_ranks_are_started_again_and_end_with_the_job(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "kill-1").touch()
    heard: list[tuple[str, float, str, int]] = []

    def progress(stage: str, fraction: float, message: str = "", *, step: int = 0, **_: Any) -> None:
        heard.append((stage, fraction, message, step))
        if (tmp_path / "cancel").exists() and step > 5:
            raise Cancelled("someone asked the job to stop")

    RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, progress)
    said = [message for _, _, message, _ in heard if message and "waiting" not in message]
    again = "rank 1 on 127.0.0.1 died; training goes on from step 2 (start 2 of 4)"
    assert said == ["on cpu", again, "on cpu"]
    assert next(stage for stage, _, message, _ in heard if message == again) == "train", "where the training stood"
    assert heard[-1][3] == STEPS - 1
    assert {rank: rest for rank, (_, *rest) in noted(tmp_path).items()} == {
        rank: [STEPS - 1, 2 * (STEPS - 1) + 1] for rank in range(2)
    }
    until(lambda: not cluster.ranks(), 10)

    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled):
        RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, progress)
    until(lambda: not any(is_alive(pid) for pid, *_ in noted(tmp_path).values()), 10)


def test_an_error_of_a_rank_ends_all_with_its_own_sentence(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(ValueError, match=r"^chats\.jsonl, line 7: the turns do not alternate$") as found:
        RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, lambda *_, **__: None)
    assert found.value.__notes__ == ["Half of it is kept."]
    assert "cluster_runs.py" in str(found.value.__cause__), "the traceback of the rank"
    assert {step for _, step, _ in noted(tmp_path).values()} == {3}, "it is not tried again"
    until(lambda: not any(is_alive(pid) for pid, *_ in noted(tmp_path).values()), 10)
    for log in cluster.folder.rglob("*"):
        assert not (log.is_file() and b"do not alternate" in log.read_bytes()), log


def part_tasks(folder: Path) -> list[PartTask]:
    return [PartTask({}, str(folder), str(folder), part, 3, "ieee") for part in range(3)]


def test_a_part_that_dies_is_measured_again_alone(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "kill-1").touch()
    shares: list[float] = []
    said: list[str] = []

    def progress(_: str, fraction: float, message: str = "", **__: Any) -> None:
        shares.append(fraction)
        said.extend(filter(None, [message]))

    RayRunner(cluster.address, notes_part)(part_tasks(tmp_path), progress)
    runs = [(tmp_path / f"{part:03d}").read_text().splitlines() for part in range(3)]
    assert [len(each) for each in runs] == [1, 2, 1]
    assert all(line.endswith(" cpu") for each in runs for line in each)
    assert said[-1] == "3 of 3 parts of the held-out texts measured"
    again = "part 2 of 3 of the held-out texts died on the Ray cluster; it is measured again (start 2 of 4)"
    assert said.count(again) == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_parts_end_with_an_error_or_with_the_job(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    (tmp_path / "fail-0").touch()
    with pytest.raises(ValueError, match=r"^part 0 has no texts$") as found:
        RayRunner(cluster.address, notes_part)(part_tasks(tmp_path), lambda *_, **__: None)
    assert "cluster_runs.py" in str(found.value.__cause__)

    def pids() -> list[int]:
        return [int(line.split()[0]) for path in tmp_path.glob("00*") for line in path.read_text().splitlines()]

    def cancel(*_: Any, **__: Any) -> None:
        if len(pids()) > before:
            raise Cancelled("someone asked the job to stop")

    before = len(pids())
    with pytest.raises(Cancelled):
        RayRunner(cluster.address, notes_part)(part_tasks(tmp_path)[1:], cancel)
    assert len(pids()) > before
    until(lambda: not any(map(is_alive, pids())), 10)
