"""What every job does with a crosscoder, whoever trained it: measure it on held-out texts and publish the result.

Everything that it writes lies in the job's folder until one rename publishes it. Knows no formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_proto.stages import Stage
from crosscope_worker.analysis import Analysis, AnalysisError, HeldOut, Splicing, analyse
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.tally import Counts, total
from crosscope_worker.data.texts import TextStream
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.phases import Following
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.publish import Provenance, manifest_of, publish
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import is_out_of_memory

TRAINED = "trained"
"""Below a job's folder: a crosscoder that was not measured, since its training or analysis failed."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A crosscoder, and how it was trained as far as this job knows."""

    crosscoder: Crosscoder
    curves: Sequence[tuple[int, str, float]] = ()
    """(step, name, value)."""
    tokens: int = 0
    """Tokens trained on, each epoch counted."""
    counts: Sequence[Counts] = ()
    """What became of the texts of each data set in the training."""
    norms: NormFilter | None = None
    """What was left out of the training by norm; None where it was not made here."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the training itself, for instance the thresholds (math §2)."""


def measure_and_publish(material: Material, trained: Trained) -> CrosscoderManifest:
    """Measures a crosscoder on the held-out texts and publishes it.

    Raises DataError, HarvestError, AnalysisError (all ValueError), PublishError (OSError), and what `progress` and
    `workspace.fence` raise.
    """
    recipe, workspace = material.recipe, material.workspace
    held_out = material.texts("held_out")
    norms = _held_out_norms(material, trained)
    try:
        analysis = _measure(material, trained, held_out, norms)
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
        _provenance(material, replace(trained, norms=trained.norms or norms), held_out.counts),
        analysis,
        trained.curves,
        workspace.fence,
    )


def _held_out_norms(material: Material, trained: Trained) -> NormFilter:
    """The filter of the training's bounds, or a new one where there was no training."""
    bounds = None if trained.norms is None else trained.norms.bounds
    return NormFilter(material.recipe.tokens.max_norm_ratio, material.pair.d_model, bounds)


def _measure(material: Material, trained: Trained, held_out: TextStream, norms: NormFilter) -> Analysis:
    recipe, activations = material.recipe, material.activations
    if trained.norms is not None and (warning := trained.norms.sentence()):
        material.progress(Stage.ANALYSE, 0.0, warning)
    following = Following(material.progress, Stage.ANALYSE)
    measured_on = HeldOut(
        harvest(held_out, activations, recipe.tokens, norms=norms, tick=following.tick),
        [data.name for data in recipe.data],
        material.tokenizer,
        material.pair,
        Splicing(activations, material.texts("held_out"), recipe.tokens, norms),
    )
    is_trained = isinstance(recipe, CrosscoderRecipe)
    apart = variant_of(recipe.crosscoder, material.pair.d_model).parts() if is_trained else ()
    analysis = analyse(trained.crosscoder, measured_on, recipe.analysis, following, apart)
    held_out.check_losses()
    left_out = norms.num_left_out / max(1, norms.num_tokens)
    outliers = left_out + (1 - left_out) * analysis.metrics["outlier_share"]
    metrics = analysis.metrics | {"outlier_share": outliers} | dict(trained.figures)
    return replace(analysis, metrics=metrics)


def _provenance(material: Material, trained: Trained, counts: Sequence[Counts] = ()) -> Provenance:
    """`counts`: what became of the texts in the analysis."""
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
        hashes=material.hashes,
    )


def keep(material: Material, trained: Trained, error: Exception, what: str = "The trained crosscoder") -> None:
    """Writes a crosscoder that was not measured into the job's folder, and adds to `error` where it is."""
    folder = material.workspace.folder / TRAINED
    try:
        manifest = manifest_of(material.recipe.name, trained.crosscoder, _provenance(material, trained))
        folder.mkdir(exist_ok=True)
        trained.crosscoder.save(folder, manifest)
    except Exception as second:  # A full disk, say: the error itself is what people must hear of first.
        error.add_note(f"{what} could not be kept: {brief(second)}")
        return
    place = folder.relative_to(material.workspace.home)
    error.add_note(f"{what} is kept: a recipe of kind published with path {place} measures it.")


def brief(error: Exception) -> str:
    """An error on a line, cut to what a job's sentence has room for."""
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder="…")
