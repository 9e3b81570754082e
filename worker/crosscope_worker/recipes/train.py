"""The job that makes a crosscoder: harvest, train, measure, publish. Knows the order of these steps, and no formula."""

from collections.abc import Sequence

import torch

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD, WINDOW_FORWARDS
from crosscope_worker.data.harvest_source import norms_of, open_source
from crosscope_worker.data.tally import Counts
from crosscope_worker.phases import TrainingProgress
from crosscope_worker.precision import float32_products
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.measure import Trained, brief, keep, measure_and_publish
from crosscope_worker.recipes.publish import already_published
from crosscope_worker.recipes.speeds import faster_dtype, remember
from crosscope_worker.training import TrainingResult, saved_result, train
from crosscope_worker.work import Progress, Stopped, Workspace


def make_crosscoder(recipe: CrosscoderRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    """Trains a crosscoder by a recipe, measures it on held-out texts and publishes it.

    Continues from the job's newest checkpoint; if this job has already published, returns what it published. Raises
    PairError, DataError, CacheError, HarvestError, TrainingError, CheckpointError, AnalysisError (all ValueError),
    CacheFull, PublishError (OSError), and whatever `progress` and `workspace.fence` raise.
    """
    if (published := already_published(recipe.name, workspace, progress)) is not None:
        return published
    material = Material.load(recipe, workspace, progress)
    texts = material.texts("train")

    def tell(message: str) -> None:
        progress("cache", 0.0, message)

    hashes = {**material.hashes, "chat_template": material.tokenizer.template.settings_hash}
    material.try_long_rows()
    following = TrainingProgress(progress, recipe.training, WINDOW_FORWARDS * TOKENS_PER_FORWARD)
    source = open_source(recipe, texts, material.activations, workspace.home, hashes, tell, following)
    suggestion = faster_dtype(recipe, sum(material.pair.d_model), workspace.device)
    following.begin(suggestion)
    try:
        with torch.no_grad(), float32_products(material.float32):
            result = train(recipe, source, material.pair.d_model, workspace.checkpoints, following, workspace.device)
    except Stopped:
        raise
    except Exception as error:  # Whatever the error is, hours of training must not be lost.
        _keep_saved(material, error)
        raise
    remember(workspace.home, recipe, workspace.device, result.curves, suggestion)
    trained = _trained(material, result, texts.counts)
    try:
        texts.check_losses()
        return measure_and_publish(material, trained)
    except Stopped:
        raise
    except Exception as error:
        keep(material, trained, error)
        raise


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


def _trained(material: Material, result: TrainingResult, counts: Sequence[Counts] = ()) -> Trained:
    norms = norms_of(result.source, material.recipe.tokens, material.pair.d_model)
    return Trained(result.crosscoder, result.curves, result.tokens, counts, norms, result.figures)
