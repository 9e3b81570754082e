"""How long each stage of a job is expected to take, by which the progress of the whole job is weighted.

The same recipe's last job is the best guess, then the plan; else the table of `crosscope_proto.stages` holds. Pure.
"""

from collections.abc import Sequence

from crosscope_proto.recipe import CrosscoderRecipe, Recipe
from crosscope_proto.stages import STAGES, Stage
from crosscope_server.jobs.estimate import ANALYSIS, TRAINING, DevicePlan
from crosscope_server.jobs.records import JobRecord, JobState

_LEAST_S = 0.1
"""A stage that is expected to take no time still has a place in the bar."""
_BRIEF_S = 2.0
"""Guess for a stage that takes moments: loading, hashing, publishing."""


def expected_seconds(
    recipe: Recipe, recipe_yaml: str, earlier: Sequence[JobRecord], devices: Sequence[DevicePlan]
) -> dict[str, float]:
    """Seconds of every stage of a job's kind; empty where nothing is known.

    `earlier` are jobs, newest first; `devices` the plans of this job.
    """
    for record in earlier:
        is_same = (record.kind, record.recipe) == (recipe.kind, recipe_yaml)
        if is_same and record.state is JobState.SUCCEEDED and record.attempt == 1:
            return _floored({stage: record.stage_seconds.get(stage, 0.0) for stage, _ in STAGES[recipe.kind]})
    times = {entry.name: entry.value for device in devices[:1] for entry in device.times}
    training, analysis = times.get(TRAINING), times.get(ANALYSIS)
    if not isinstance(recipe, CrosscoderRecipe) or training is None or analysis is None:
        return {}
    table = dict(STAGES[recipe.kind])
    a_weight = analysis / table[Stage.ANALYSE]
    filling = table[Stage.FILL] / (table[Stage.FILL] + table[Stage.TRAIN])
    return _floored(
        {
            Stage.LOAD: _BRIEF_S,
            Stage.HASH: _BRIEF_S,
            Stage.HASH_DATA: _BRIEF_S if recipe.training.cache else 0.0,
            Stage.FILL: training * filling,
            Stage.TRAIN: training * (1 - filling),
            Stage.ANALYSE: analysis,
            Stage.FIDELITY: a_weight * table[Stage.FIDELITY] * (recipe.analysis.spliced_tokens > 0),
            Stage.CAUSAL: a_weight * table[Stage.CAUSAL] * (recipe.analysis.causal is not None),
            Stage.PUBLISH: _BRIEF_S,
        }
    )


def _floored(seconds: dict[str, float]) -> dict[str, float]:
    return {str(stage): round(max(each, _LEAST_S), 3) for stage, each in seconds.items()}
