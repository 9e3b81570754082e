"""How long each stage of a job is expected to take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crosscope_proto.recipe import parse_recipe
from crosscope_proto.stages import STAGES
from crosscope_server.jobs.estimate import DevicePlan, Entry
from crosscope_server.jobs.expected import expected_seconds
from crosscope_server.jobs.records import JobRecord

TEXT = (Path(__file__).parents[2] / "recipes" / "demo.yaml").read_text()
RECIPE = parse_recipe(TEXT)
TIMES = [Entry("training", 72.0, "seconds"), Entry("analysis", 20.0, "seconds"), Entry("whole job", 92.0, "seconds")]
DEVICE = DevicePlan("here", None, None, times=TIMES)


def test_the_plan_gives_training_and_analysis_and_the_table_their_companions() -> None:
    # Fill and train share 72 s as 3 to 69; fidelity and causal follow the analysis as 4 and 4 to 20.
    found = expected_seconds(RECIPE, TEXT, [], [DEVICE])
    assert found.keys() == dict(STAGES["crosscoder"]).keys()
    assert (found["fill"], found["train"]) == (pytest.approx(3), pytest.approx(69))
    assert [found[name] for name in ("analyse", "fidelity", "causal", "hash-data")] == [20, 4, 4, 0.1]


def test_the_last_job_of_the_same_recipe_is_the_better_guess() -> None:
    record = JobRecord(
        id="j1", kind="crosscoder", name="demo", recipe=TEXT, after=(), claim="", end="succeeded", stage="", fraction=1,
        message="", attempt=1, created_at=1, started_at=1, ended_at=9, cancel_at=0, version_id="v",
        stage_seconds={"load": 3.0, "train": 50.0},
    )  # fmt: skip
    found = expected_seconds(RECIPE, TEXT, [record], [DEVICE])
    assert (found["load"], found["train"], found["causal"]) == (3, 50, 0.1)
    for other in (replace(record, recipe="x"), replace(record, end="failed"), replace(record, attempt=2)):
        assert expected_seconds(RECIPE, TEXT, [other], [DEVICE])["train"] == pytest.approx(69)


def test_what_is_unknown_is_left_to_the_table() -> None:
    unknown = replace(DEVICE, times=[Entry("training", None), TIMES[1]])
    assert expected_seconds(RECIPE, TEXT, [], [unknown]) == expected_seconds(RECIPE, TEXT, [], []) == {}
    pair = parse_recipe("{kind: demo-pair, name: a}")
    assert expected_seconds(pair, json.dumps({}), [], [DEVICE]) == {}
