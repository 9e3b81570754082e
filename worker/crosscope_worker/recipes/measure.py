"""The last steps of every job with a crosscoder: measuring it on held-out texts, and publishing the result.

All files are written in the job's folder until one rename publishes them. Knows no formula.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_proto.stages import Stage
from crosscope_store.errors import StoreError
from crosscope_worker.analysis import Analysis, AnalysisError, HeldOut, Splicing, conclude
from crosscope_worker.data.tally import Counts, total
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.phases import Following
from crosscope_worker.precision import float32_products
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.parts import Runner
from crosscope_worker.recipes.passes import pass_over
from crosscope_worker.recipes.publish import Provenance, manifest_of, publish
from crosscope_worker.sharing import Sharing
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import Workspace, is_out_of_memory

TRAINED = "trained"
"""Folder below a job's folder for a crosscoder that was not measured because its training or analysis failed."""
_RAY = "crosscope_worker.cluster.runner"
"""The module of what measures parts on a Ray cluster, a room above this one."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A crosscoder, and the facts about its training that this job knows."""

    crosscoder: Crosscoder
    curves: Sequence[tuple[int, str, float]] = ()
    """(step, name, value)."""
    tokens: int = 0
    """Tokens trained on, each epoch counted."""
    counts: Sequence[Counts] = ()
    """Counts of the texts of each data set in the training, by what happened to them."""
    norms: NormFilter | None = None
    """The filter by norm of the training; None if the crosscoder was not trained here."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the training itself, for instance the thresholds (math §2)."""


def measure_and_publish(material: Material, trained: Trained, runner: Runner | None = None) -> CrosscoderManifest:
    """Measures a crosscoder on the held-out texts and publishes it.

    The pass over the texts goes part by part (parts.py): by a `runner`, several parts on the workspace's Ray cluster,
    or here. Parts that an earlier attempt of the job has measured are not measured again. Raises DataError,
    HarvestError, AnalysisError, ClusterError (all ValueError), PublishError (OSError), and whatever the runner,
    `progress` and `workspace.fence` raise.
    """
    recipe, workspace = material.recipe, material.workspace
    norms = _held_out_norms(material, trained)
    try:
        with float32_products(material.float32):
            analysis, counts = _measure(material, trained, norms, runner or _runner(workspace))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        shards = recipe.analysis.num_shards
        raise AnalysisError(
            f"memory ran out while {trained.crosscoder.num_latents} latents were measured; lower "
            f"analysis.num_shards from {shards} to {max(2, shards // 2)}, or use a machine with more"
        ) from error
    material.progress(Stage.PUBLISH, 0.0, f"writing the version: {recipe.name}")
    return publish(
        workspace.home,
        recipe.name,
        trained.crosscoder,
        _provenance(material, replace(trained, norms=trained.norms or norms), counts),
        analysis,
        trained.curves,
        workspace.fence,
        Sharing.of(workspace, material.progress),
    )


def _runner(workspace: Workspace) -> Runner | None:
    """What measures several parts on the workspace's Ray cluster; None without one."""
    return None if workspace.ray_address is None else importlib.import_module(_RAY).RayRunner(workspace.ray_address)


def _held_out_norms(material: Material, trained: Trained) -> NormFilter:
    """A filter with the training's bounds, or a new one without a training."""
    bounds = None if trained.norms is None else trained.norms.bounds
    return NormFilter(material.recipe.tokens.max_norm_ratio, material.pair.d_model, bounds)


def _measure(
    material: Material, trained: Trained, norms: NormFilter, runner: Runner | None
) -> tuple[Analysis, Sequence[Counts]]:
    """The analysis, and the counts of the texts of each data set that it read."""
    recipe, activations = material.recipe, material.activations
    if trained.norms is not None and (warning := trained.norms.sentence()):
        material.progress(Stage.ANALYSE, 0.0, warning)
    following = Following(material.progress, Stage.ANALYSE)

    def save_weights(folder: Path) -> None:
        trained.crosscoder.save(folder, manifest_of(recipe.name, trained.crosscoder, _provenance(material, trained)))

    found, counts = pass_over(material, trained.crosscoder, norms, following, runner, save_weights)
    measured_on = HeldOut(
        (),
        [data.name for data in recipe.data],
        material.tokenizer,
        material.pair,
        Splicing(activations, material.texts("held_out"), recipe.tokens, norms),
        Splicing(activations, material.texts("held_out"), recipe.tokens, norms),
    )
    is_trained = isinstance(recipe, CrosscoderRecipe)
    apart = variant_of(recipe.crosscoder, material.pair.d_model).parts() if is_trained else ()
    try:
        analysis = conclude(trained.crosscoder, measured_on, recipe.analysis, following, found, apart)
    finally:
        found.close()
    left_out = norms.num_left_out / max(1, norms.num_tokens)
    outliers = left_out + (1 - left_out) * analysis.metrics["outlier_share"]
    metrics = analysis.metrics | {"outlier_share": outliers} | dict(trained.figures)
    return replace(analysis, metrics=metrics), counts


def _provenance(material: Material, trained: Trained, counts: Sequence[Counts] = ()) -> Provenance:
    """Provenance of the version; `counts` are those of the texts in the analysis."""
    names = [data.name for data in material.recipe.data]
    found = dict(zip(names, total(trained.counts, counts), strict=False))
    norms = trained.norms or NormFilter(None, material.pair.d_model)
    warning = norms.sentence()
    return Provenance(
        norms=norms.bounds,
        norm_left_out=norms.num_left_out,
        warnings=(warning,) if warning else (),
        pair=material.pair.manifest,
        layer=material.recipe.layer,
        recipe=recipe_dict(material.recipe),
        training_tokens=trained.tokens,
        skipped={name: each.refused for name, each in found.items() if each.refused},
        texts={name: each.plain() for name, each in found.items()},
        job=material.workspace.folder.name,
        chat_template_date=material.tokenizer.template.settings.date,
        float32=material.float32,
        hashes=material.hashes,
    )


def keep(material: Material, trained: Trained, error: Exception, what: str = "The trained crosscoder") -> None:
    """Writes a crosscoder that was not measured into the job's folder, and adds its path to `error`.

    What a store did not take was measured, and is kept by then.
    """
    if isinstance(error, StoreError):
        return
    folder = material.workspace.folder / TRAINED
    try:
        manifest = manifest_of(material.recipe.name, trained.crosscoder, _provenance(material, trained))
        folder.mkdir(exist_ok=True)
        trained.crosscoder.save(folder, manifest)
    except Exception as second:  # For instance a full disk; the first error matters more.
        error.add_note(f"{what} could not be kept: {brief(second)}")
        return
    place = folder.relative_to(material.workspace.home)
    error.add_note(f"{what} is kept: a recipe of kind published with path {place} measures it.")


def brief(error: Exception) -> str:
    """An error in one line, cut to the length that a job's message has left."""
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder="…")
