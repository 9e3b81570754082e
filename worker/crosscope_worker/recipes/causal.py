"""The job that measures what latents of a published crosscoder do, and publishes it again. Knows no formula."""

import datetime
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from crosscope_proto.artefacts import CURRENT, LATENTS, CrosscoderManifest, crosscoder_folder, version_folder
from crosscope_proto.recipe import (
    CausalRecipe,
    CrosscoderRecipe,
    PublishedRecipe,
    RecipeError,
    parse_recipe,
    recipe_dict,
)
from crosscope_proto.stages import Stage
from crosscope_worker.analysis import AnalysisError, Splicing, measure_causal, with_columns
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.models.norms import NormBounds, NormFilter
from crosscope_worker.models.places import PairError
from crosscope_worker.phases import Following
from crosscope_worker.precision import float32_products
from crosscope_worker.recipes.material import AnalysedRecipe, Material
from crosscope_worker.recipes.publish import already_published, publish_again, read_current
from crosscope_worker.sharing import Sharing
from crosscope_worker.work import Progress, Workspace


def make_causal(recipe: CausalRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    """Measures causal effects of a crosscoder's current version, and publishes the same weights and tables with them.

    If this job has already published, returns what it published; otherwise measures from the first text. Raises
    CrosscoderError for a crosscoder that is missing, damaged or without a recipe, PairError for models that have
    changed, AnalysisError where no latent can be chosen, and otherwise as make_crosscoder.
    """
    if (published := already_published(recipe.name, workspace, progress)) is not None:
        return published
    progress(Stage.LOAD, 0.0, f"loading the crosscoder {recipe.name}")
    folder = _current(recipe.name, workspace.home)
    workspace.shelf.need_all(folder)
    manifest = read_manifest(folder)
    made_by = _made_by(manifest)
    made_by = replace(made_by, analysis=replace(made_by.analysis, causal=recipe.causal))
    crosscoder = load_crosscoder(folder, workspace.device, tell=lambda message: progress(Stage.LOAD, 0.0, message))
    latents = pq.read_table(folder / LATENTS)
    dated = replace(made_by, chat_template_date=_day(manifest) or made_by.chat_template_date)
    material = Material.load(dated, workspace, progress)
    _check_unchanged(manifest, material)
    bounds = None if manifest.norm_limits is None else NormBounds(manifest.norm_limits, manifest.norm_positions)
    norms = NormFilter(made_by.tokens.max_norm_ratio, material.pair.d_model, bounds)
    sample = Splicing(material.activations, material.texts("held_out"), made_by.tokens, norms)
    with float32_products(material.float32):
        effects = measure_causal(crosscoder, sample, latents, recipe.causal, Following(progress, Stage.CAUSAL))
    if effects.reason:
        raise AnalysisError(effects.reason)
    progress(Stage.PUBLISH, 0.0, f"writing the version: {recipe.name}")
    finite = {name: value for name, value in effects.metrics.items() if math.isfinite(value)}
    stale = [name for name in manifest.metrics if name.startswith("causal_")]
    changed = replace(
        manifest,
        metrics={name: value for name, value in manifest.metrics.items() if name not in stale} | finite,
        unavailable={name: reason for name, reason in manifest.unavailable.items() if name != "causal"},
        recipe=recipe_dict(made_by),
        job=workspace.folder.name,
    )
    sharing = Sharing.of(workspace, progress)
    return publish_again(workspace.home, changed, with_columns(latents, effects.columns), workspace.fence, sharing)


def _current(name: str, home: Path) -> Path:
    """The folder of a crosscoder's current version. Raises CrosscoderError."""
    folder = Path(crosscoder_folder(home, name))
    if (version_id := read_current(folder)) is None:
        known = ", ".join(sorted(each.parent.name for each in folder.parent.glob(f"*/{CURRENT}"))[:20]) or "none"
        raise CrosscoderError(f"there is no crosscoder {name!r} to measure (there: {known})")
    return Path(version_folder(home, name, version_id))


def _made_by(manifest: CrosscoderManifest) -> AnalysedRecipe:
    """The recipe that made a crosscoder. Raises CrosscoderError if the manifest holds none that this program reads."""
    try:
        recipe = parse_recipe(json.dumps(manifest.recipe))
    except RecipeError as error:
        raise CrosscoderError(
            f"the recipe in the manifest of {manifest.name!r} names no data and pair that can be read ({error}); make "
            "the crosscoder again, or measure its weights by a recipe of kind published with analysis.causal"
        ) from error
    assert isinstance(recipe, CrosscoderRecipe | PublishedRecipe)
    return recipe


def _day(manifest: CrosscoderManifest) -> datetime.date | None:
    """The day that the chat template printed then."""
    return datetime.date.fromisoformat(manifest.chat_template_date) if manifest.chat_template_date else None


def _check_unchanged(manifest: CrosscoderManifest, material: Material) -> None:
    """Raises PairError if a model or the tokenizer is not the one that the crosscoder was trained on."""
    for name, found in material.hashes.items():
        if manifest.hashes.get(name, found) != found:
            raise PairError(
                f"the {name} of the pair {manifest.pair.name!r} has changed since crosscoder {manifest.name!r} was "
                "trained; restore the files, or train it again"
            )
