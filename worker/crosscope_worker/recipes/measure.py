"""What every job does with a crosscoder, whoever trained it: measure it on held-out texts and publish the result.

Everything that it writes lies in the job's folder until one rename publishes it. Knows no formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Self

import torch

from crosscope_proto.artefacts import CrosscoderManifest, PairManifest, crosscoder_folder, pair_folder
from crosscope_proto.recipe import CrosscoderRecipe, PublishedRecipe, recipe_dict
from crosscope_worker.analysis import Analysis, AnalysisError, analyse
from crosscope_worker.analysis.fidelity import fidelity, patched_latents
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.analysis.run import STAGE
from crosscope_worker.analysis.upper_half import UpperHalf
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.norms import NormFilter
from crosscope_worker.data.tally import Counts, total
from crosscope_worker.data.texts import Split, TextStream, open_rows
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.sparse import launches_kernels
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair, load_pair
from crosscope_worker.models.pair_hashes import pair_hashes
from crosscope_worker.models.pair_source import resolve_pair
from crosscope_worker.phases import Following, Phase, loading
from crosscope_worker.recipes.publish import Provenance, make_current, manifest_of, publish
from crosscope_worker.roots import check_pair_folders
from crosscope_worker.tokenizer.tokens import TemplateSettings, TextTokenizer
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import Progress, Workspace, is_out_of_memory

Recipe = CrosscoderRecipe | PublishedRecipe
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


@dataclass(frozen=True, eq=False)
class Material:
    """What a recipe's pair and data are, loaded."""

    recipe: Recipe
    workspace: Workspace
    progress: Progress
    pair: Pair
    activations: PairActivations
    tokenizer: TextTokenizer
    hashes: dict[str, str]
    """`pair_hashes` of the pair."""

    @classmethod
    def load(cls, recipe: Recipe, workspace: Workspace, progress: Progress) -> Self:
        """Loads the pair and opens the data.

        Raises PairError, RootError for a pair that jobs may not read, AnalysisError where `analysis.spliced_tokens`
        cannot be had of a model, and DataError, also where a set has no held-out text.
        """
        progress("load", 0.0, f"looking for the pair {recipe.pair.name} and the data")
        on_gpu = torch.device(workspace.device).type == "cuda"
        manifest = resolve_pair(recipe.pair, workspace.home)
        check_pair_folders(manifest, workspace.roots)
        # Files that are missing or closed are said before models are loaded, which takes minutes.
        for spec in recipe.data:
            open_rows(spec, _folders(recipe, workspace), workspace.roots)
        with loading(progress, f"loading the pair {recipe.pair.name}", _size_bytes(manifest)):
            pair = load_pair(manifest, workspace.device, long_rows=on_gpu and launches_kernels())
        activations = PairActivations(pair, recipe.layer)
        progress("load", 0.92, "trying both models on a few tokens")
        for message in _try_models(activations, recipe):
            progress("load", 0.94, message)
        day = recipe.chat_template_date.isoformat() if recipe.chat_template_date else workspace.first_day()
        tokenizer = TextTokenizer(pair.tokenizer, TemplateSettings.of_recipe(recipe_dict(recipe), day))
        material = cls(recipe, workspace, progress, pair, activations, tokenizer, {})
        progress("load", 0.96, "looking for the held-out texts")
        material.texts("held_out").check_held_out()
        hashing = Phase(progress, "hash", "hashing the models' files", _size_bytes(manifest), "bytes")
        return replace(material, hashes=pair_hashes(manifest, hashing))

    def texts(self, split: Split) -> TextStream:
        """The recipe's texts of a split, from their beginning, cut to what both models can read.

        Raises DataError if a file is missing.
        """
        policy, limit = self.recipe.tokens, self.pair.max_positions
        if limit is not None:
            policy = replace(policy, max_length=min(limit, policy.max_length))
        folders = _folders(self.recipe, self.workspace)

        def tell(message: str) -> None:
            self.progress("read", 0.0, message)

        return TextStream(self.recipe.data, self.tokenizer, policy, folders, split, self.workspace.roots, tell)


def _folders(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Where relative paths of data are looked up, in this order."""
    folders = [Path(pair_folder(workspace.home, recipe.pair.name)), workspace.home]
    return folders if workspace.submitted_from is None else [*folders, workspace.submitted_from]


def _try_models(activations: PairActivations, recipe: Recipe) -> list[str]:
    """What people must know of the models before anything is trained, a sentence each.

    Raises PairError or AnalysisError where a model cannot be read or measured.
    """
    activations.check()
    if recipe.analysis.spliced_tokens:
        for model in activations.pair.models:
            UpperHalf(model, recipe.layer)
    _, reasons = find_lenses(activations.pair)
    differences = activations.pair.manifest.token_differences
    told = [f"no logit lens: {reason}" for reason in reasons.values()]
    if differences:
        told.append(f"the tokenizers name {len(differences)} tokens differently; the first: {differences[0]}")
    return told


def _size_bytes(manifest: PairManifest) -> int:
    """Of everything in the pair's folders; a model of the hub counts nothing."""
    places = (manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)
    folders = {Path(source) for source in places if source is not None}
    return sum(path.stat().st_size for each in folders if each.is_absolute() for path in each.glob("*"))


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
    material.progress("publish", 0.0, f"writing the version: {recipe.name}")
    return publish(
        workspace.home,
        recipe.name,
        trained.crosscoder,
        _provenance(material, replace(trained, norms=trained.norms or norms), held_out.counts),
        analysis,
        trained.curves,
        workspace.fence,
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


def _held_out_norms(material: Material, trained: Trained) -> NormFilter:
    """The filter of the training's bounds, or a new one where there was no training."""
    bounds = None if trained.norms is None else trained.norms.bounds
    return NormFilter(material.recipe.tokens.max_norm_ratio, material.pair.d_model, bounds)


def _measure(material: Material, trained: Trained, held_out: TextStream, norms: NormFilter) -> Analysis:
    recipe, pair, progress, crosscoder = material.recipe, material.pair, material.progress, trained.crosscoder
    if trained.norms is not None and (warning := trained.norms.sentence()):
        progress(STAGE, 0.0, warning)
    following = Following(progress, STAGE)
    harvests = harvest(held_out, material.activations, recipe.tokens, norms=norms, tick=following.tick)
    names = [data.name for data in recipe.data]
    apart = variant_of(recipe.crosscoder, pair.d_model).parts() if isinstance(recipe, CrosscoderRecipe) else ()
    analysis = analyse(crosscoder, harvests, recipe.analysis, names, material.tokenizer, pair, following, apart)
    held_out.check_losses()
    spliced, patched = material.texts("held_out"), patched_latents(analysis.latents)
    tokens, bounds = recipe.tokens, norms.bounds
    figures = fidelity(crosscoder, pair, recipe.layer, spliced, patched, recipe.analysis, tokens, progress, bounds)
    left_out = norms.num_left_out / max(1, norms.num_tokens)
    outliers = left_out + (1 - left_out) * analysis.metrics["outlier_share"]
    metrics = analysis.metrics | {"outlier_share": outliers} | figures | dict(trained.figures)
    return replace(analysis, metrics=metrics)


def already_published(recipe: Recipe, workspace: Workspace) -> CrosscoderManifest | None:
    """What this job has published in an earlier attempt, made the current version, or None."""
    if (published := find_published(workspace.home, recipe.name, workspace.folder.name)) is not None:
        make_current(workspace.home, published, workspace.fence)
    return published


def find_published(home: Path, name: str, job: str) -> CrosscoderManifest | None:
    """The newest version of crosscoder `name` that `job` has published, or None."""
    versions = Path(crosscoder_folder(home, name)) / "versions"
    for folder in sorted(versions.glob("[!.]*"), reverse=True):
        try:
            manifest = read_manifest(folder)
        except CrosscoderError:
            continue  # A damaged version of another time is none of this job's business; whoever reads it is told.
        if manifest.job == job:
            return manifest
    return None
