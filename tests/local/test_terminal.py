"""The board of jobs, as a terminal of 80 columns shows it."""

from io import StringIO

import pytest
from rich.console import Console

from crosscope import JobInfo, JobState
from crosscope_local.terminal import JobBoard


def shown(job: JobInfo) -> str:
    board = JobBoard()
    board.put("crosscoder demo-l1", job)
    out = StringIO()
    Console(file=out, width=80).print(board)
    return out.getvalue()


def a_job(state: JobState, eta_s: float) -> JobInfo:
    return JobInfo(
        id="1",
        kind="crosscoder",
        name="demo-l1",
        state=state,
        queue_position=0,
        after=(),
        stage="train",
        fraction=0.5,
        message="step 600 of 1200",
        attempt=1,
        created_at=1.0,
        started_at=2.0,
        ended_at=0.0,
        metrics={},
        stage_seconds={},
        version_id="",
        recipe_yaml="",
        eta_s=eta_s,
    )


@pytest.mark.parametrize(
    ("state", "eta_s", "says"),
    [(JobState.RUNNING, 540.0, "about 9 min left"), (JobState.RUNNING, 0.0, ""), (JobState.SUCCEEDED, 540.0, "")],
)
def test_the_time_left_stands_beside_the_message(state: JobState, eta_s: float, says: str) -> None:
    line = shown(a_job(state, eta_s))
    assert "step 600 of 1200" in line
    assert says in line
    assert ("left" in line) == bool(says)
