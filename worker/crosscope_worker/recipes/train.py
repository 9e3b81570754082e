"""The job that makes a crosscoder: harvest, train, measure, publish. Knows the order of these steps, and no formula."""

import importlib

import torch

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.stages import Stage
from crosscope_worker.data.harvest_source import counts_of, have_ended, norms_of
from crosscope_worker.precision import float32_products
from crosscope_worker.recipes.elastic import ElasticLauncher
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.measure import Trained, brief, keep, measure_and_publish
from crosscope_worker.recipes.publish import already_published
from crosscope_worker.recipes.rank import open_streams, run_rank
from crosscope_worker.recipes.ranks import Launcher, RankTask, devices_there, num_devices
from crosscope_worker.recipes.speeds import faster_dtype, remember
from crosscope_worker.training import TrainingResult, newest_step, saved_result, train
from crosscope_worker.work import Progress, Stopped, Workspace, silent

_RAY = "crosscope_worker.cluster.launcher"
"""The module of the launcher on a Ray cluster, a room above this one."""


def make_crosscoder(recipe: CrosscoderRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    """Trains a crosscoder by a recipe, measures it on held-out texts and publishes it.

    Continues from the job's newest checkpoint; if this job has already published, returns what it published. Raises
    PairError, DataError, CacheError, HarvestError, TrainingError, CheckpointError, AnalysisError, ClusterError (all
    ValueError), CacheFull, PublishError (OSError), RankError with one of these as its cause, and whatever `progress`
    and `workspace.fence` raise.
    """
    if (published := already_published(recipe.name, workspace, progress)) is not None:
        return published
    launcher, number = _launcher(recipe, workspace)
    if launcher is None:
        material = Material.load(recipe, workspace, progress)
        result, suggestion = _train_here(material, progress)
    else:
        material, suggestion = _train_on(launcher, number, recipe, workspace, progress), ""
        result = saved_result(recipe, material.pair.d_model, workspace.checkpoints)
        assert result is not None, "the ranks' last checkpoint holds the end"
    remember(workspace.home, recipe, workspace.device, number, result.curves, suggestion)
    trained = _trained(material, result)
    try:
        material.texts("train").check_together(trained.counts, have_ended(result.sources))
        return measure_and_publish(material, trained)
    except Stopped:
        raise
    except Exception as error:
        keep(material, trained, error)
        raise


def _launcher(recipe: CrosscoderRecipe, workspace: Workspace) -> tuple[Launcher | None, int]:
    """What launches the ranks of a training, and how many; None where this process trains alone.

    Raises TrainingError if there are not as many devices, and ClusterError of a Ray cluster that cannot be used.
    """
    if workspace.ray_address is not None and recipe.training.devices != 1:
        return importlib.import_module(_RAY).launcher(recipe, workspace)
    number = num_devices(recipe, workspace.device, devices_there(workspace.device))
    return (ElasticLauncher(run_rank), number) if number > 1 else (None, 1)


def _train_here(material: Material, progress: Progress) -> tuple[TrainingResult, str]:
    """The result of a training in this process, and what was noticed about the machine."""
    recipe, workspace = material.recipe, material.workspace
    assert isinstance(recipe, CrosscoderRecipe)
    material.try_long_rows()
    sources, following = open_streams(material, progress)
    suggestion = faster_dtype(recipe, sum(material.pair.d_model), workspace.device)
    following.begin(suggestion)
    try:
        with torch.no_grad(), float32_products(material.float32):
            result = train(recipe, sources, material.pair.d_model, workspace.checkpoints, following, workspace.device)
    except Stopped:
        raise
    except Exception as error:  # Whatever the error is, hours of training must not be lost.
        _keep_saved(material, error)
        raise
    return result, suggestion


def _train_on(
    launcher: Launcher, number: int, recipe: CrosscoderRecipe, workspace: Workspace, progress: Progress
) -> Material:
    """Trains on `number` devices; then loads pair and data, which this process does not hold meanwhile."""
    progress(Stage.LOAD, 0.0, f"starting {number} processes, one a device")
    try:
        launcher(RankTask.of(recipe, workspace), number, progress)
    except Stopped:
        raise
    except Exception as error:
        if newest_step(workspace.checkpoints) is not None:
            _keep_saved_of_ranks(recipe, workspace, error)
        raise
    return Material.load(recipe, workspace, progress)


def _keep_saved_of_ranks(recipe: CrosscoderRecipe, workspace: Workspace, error: Exception) -> None:
    try:
        material = Material.load(recipe, workspace, silent)
    except Exception as second:  # What ended the ranks may end this too; the first error matters more.
        error.add_note(f"The last checkpoint could not be kept as a crosscoder: {brief(second)}")
        return
    _keep_saved(material, error)


@torch.no_grad()
def _keep_saved(material: Material, error: Exception) -> None:
    """Keeps the crosscoder in the newest checkpoint of a failed training; the checkpoint itself goes after its
    retention.
    """
    recipe = material.recipe
    assert isinstance(recipe, CrosscoderRecipe)
    try:
        saved = saved_result(recipe, material.pair.d_model, material.workspace.checkpoints)
    except Exception as second:  # A damaged checkpoint or too little memory; the first error matters more.
        error.add_note(f"The last checkpoint could not be kept as a crosscoder: {brief(second)}")
        return
    if saved is not None:
        what = f"The crosscoder as of step {saved.steps}, the last checkpoint,"
        keep(material, _trained(material, saved), error, what)


def _trained(material: Material, result: TrainingResult) -> Trained:
    norms = norms_of(result.sources, material.recipe.tokens, material.pair.d_model)
    return Trained(result.crosscoder, result.curves, result.tokens, counts_of(result.sources), norms, result.figures)
