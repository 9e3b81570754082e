"""What one rank of a training does: it loads the pair and its streams of texts, and trains its share of the latents.

The last checkpoint holds the end (training/checkpoint.py). Does not know how processes are started.
"""

import torch

from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD, WINDOW_FORWARDS
from crosscope_worker.data.harvest_source import open_sources
from crosscope_worker.data.part import Part
from crosscope_worker.phases import TrainingProgress
from crosscope_worker.precision import float32_products
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.ranks import RankTask, check_alike
from crosscope_worker.training import num_streams, train_together
from crosscope_worker.work import Progress


def run_rank(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """Trains as one of the ranks, from the newest checkpoint if there is one; the last checkpoint holds the end.

    All ranks call it, in torch's default process group, whose tensors on the host go by gloo (backend "cpu:gloo" or
    "cpu:gloo,cuda:nccl"). Raises TrainingError where ranks run other versions or recipes, and otherwise as
    make_crosscoder up to the end of its training.
    """
    check_alike(task, ranks)
    recipe = parse_recipe(task.recipe)
    assert isinstance(recipe, CrosscoderRecipe)
    material = Material.load(recipe, task.workspace(device), progress, hashed=recipe.training.cache)
    material.try_long_rows()
    sources, following = open_streams(material, progress, ranks)
    how = "ieee" if "ieee" in ranks.everyone(material.float32) else material.float32
    following.begin()
    with torch.no_grad(), float32_products(how):
        train_together(recipe, sources, material.pair.d_model, material.workspace.checkpoints, following, device, ranks)


def open_streams(
    material: Material, progress: Progress, ranks: Ranks = ALONE
) -> tuple[list[ActivationSource], TrainingProgress]:
    """The sources of a rank's streams, and the Progress that hears of what they read."""
    recipe, workspace = material.recipe, material.workspace
    assert isinstance(recipe, CrosscoderRecipe)

    def tell(message: str) -> None:
        progress("cache", 0.0, message)

    number = num_streams(recipe, workspace.checkpoints, ranks.size)
    own = range(number)[ranks.share(number)]
    window = WINDOW_FORWARDS * TOKENS_PER_FORWARD
    following = TrainingProgress(progress, recipe.training, window, len(own) / number)
    hashes = {**material.hashes, "chat_template": material.tokenizer.template.settings_hash}
    streams = [material.texts("train", Part(index, number)) for index in own]
    sources = open_sources(recipe, streams, material.activations, workspace.home, hashes, tell, following)
    return sources, following
