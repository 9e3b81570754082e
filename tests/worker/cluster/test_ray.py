"""Ranks and parts on a real Ray cluster of two nodes: what dies, fails, is cancelled or has other versions."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fixtures_ray import RayCluster
from fixtures_waiting import until

from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.cluster.launcher import RayLauncher
from crosscope_worker.cluster.runner import RayRunner
from crosscope_worker.recipes.parts import PartTask
from crosscope_worker.recipes.ranks import RankTask
from crosscope_worker.work import Cancelled, RankError
from tests.jobs.rig import is_alive
from tests.worker.cluster.cluster_runs import notes_part, sums_up

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _of_the_cluster(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the cluster's variables."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


def rank_task(folder: Path) -> RankTask:
    return RankTask("{}", str(folder), str(folder), "cpu")


def noted(folder: Path) -> dict[int, list[int]]:
    """Of each rank: its process, its last step, and the sum of that step."""
    return {int(path.name[-1]): [*map(int, path.read_text().split())] for path in sorted(folder.glob("rank-*"))}


def test_ranks_that_die_are_started_again_and_those_that_fail_are_not(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "kill-1").touch()
    heard: list[tuple[str, str]] = []

    def progress(stage: str, _: float, message: str = "", **__: Any) -> None:
        if message and "waiting" not in message:
            heard.append((stage, message))

    with pytest.raises(RankError, match=r"^rank 1 of 2: chats\.jsonl, line 7: the turns do not alternate") as found:
        RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, progress)
    assert heard[:2] == [
        ("train", "on cpu"),
        ("train", "rank 1 on 127.0.0.1 died; training goes on from step 2 (start 2 of 4)"),
    ], "a sentence stands where the training stood"
    assert noted(tmp_path)[1][1:] == [3, 0 + 3 + 1 + 3], "it is not tried again"
    assert found.value.__notes__ == ["Half of it is kept."]
    cause = found.value.__cause__
    assert type(cause) is ValueError
    assert "cluster_runs.py" in str(cause.__cause__), "the traceback of the rank"
    until(lambda: not cluster.ranks())
    logs = [path for path in cluster.folder.rglob("logs/**/*") if path.is_file()]
    assert logs
    for log in logs:
        assert b"do not alternate" not in log.read_bytes(), log


def test_ranks_end_with_their_job(cluster: RayCluster, tmp_path: Path) -> None:
    def cancel(*_: Any, step: int = 0, **__: Any) -> None:
        if step > 5:
            raise Cancelled("someone asked the job to stop")

    (tmp_path / "go-on").touch()
    with pytest.raises(Cancelled):
        RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, cancel)
    assert len(noted(tmp_path)) == 2
    until(lambda: not any(is_alive(pid) for pid, *_ in noted(tmp_path).values()))


@pytest.mark.parametrize("has", ["a package that cannot be imported", "another version"])
def test_a_node_with_other_software_is_named_before_anything_starts_there(
    cluster: RayCluster, tmp_path: Path, has: str
) -> None:
    here = version("crosscope-worker")
    if has == "another version":
        (tmp_path / "crosscope_worker-0.0.1.dist-info").mkdir()
        (tmp_path / "crosscope_worker-0.0.1.dist-info/METADATA").write_text("Name: crosscope-worker\nVersion: 0.0.1\n")
        found = r"0\.0\.1"
    else:
        (tmp_path / "crosscope_worker.py").write_text("raise ImportError('nothing here')")
        found = rf"{here} that cannot be imported \(ImportError: nothing here\)"
    said = (
        rf"^node 127\.0\.0\.1 of the Ray cluster has crosscope-worker {found}, and the job worker has {here}; "
        rf"install crosscope-worker=={here} there"
    )
    with cluster.node(PYTHONPATH=str(tmp_path)):
        with pytest.raises(ClusterError, match=said):
            RayLauncher(cluster.address, sums_up)(rank_task(tmp_path), 2, lambda *_, **__: None)
        with pytest.raises(ClusterError, match=said):
            RayRunner(cluster.address, notes_part)(part_tasks(tmp_path), lambda *_, **__: None)
    assert not noted(tmp_path)
    assert not list(tmp_path.glob("00*"))


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
    assert [len(each) for each in runs] == [1, 2, 1], said
    assert all(line.endswith(" cpu") for each in runs for line in each)
    assert said[-1] == "3 of 3 parts of the held-out texts measured"
    again = "part 2 of 3 of the held-out texts died on the Ray cluster; it is measured again (start 2 of 4)"
    assert said.count(again) == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_an_error_of_a_part_ends_all(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    (tmp_path / "fail-1").touch()
    with pytest.raises(ValueError, match=r"^part 1 has no texts$") as found:
        RayRunner(cluster.address, notes_part)(part_tasks(tmp_path), lambda *_, **__: None)
    assert "cluster_runs.py" in str(found.value.__cause__), "the traceback of the part"
    pids = [int(line.split()[0]) for path in tmp_path.glob("00*") for line in path.read_text().splitlines()]
    until(lambda: not any(map(is_alive, pids)))
