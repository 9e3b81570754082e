"""What every job does with a crosscoder, whoever trained it: measure it on held-out texts and publish the result.

Everything that it writes lies in the job's folder until one rename publishes it. Knows no formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Self

import torch

from crosscope_proto.artefacts import CrosscoderManifest, PairManifest, crosscoder_folder, pair_folder
from crosscope_proto.recipe import CrosscoderRecipe, PublishedRecipe, recipe_dict
from crosscope_worker.activations import PairActivations
from crosscope_worker.analysis import Analysis, AnalysisError, analyse
from crosscope_worker.analysis.fidelity import fidelity, patched_latents
from crosscope_worker.crosscoder import Crosscoder, CrosscoderError, read_manifest
from crosscope_worker.harvest import harvest
from crosscope_worker.pair import Pair, load_pair
from crosscope_worker.pair_source import pair_hashes, resolve_pair
from crosscope_worker.phases import Following, Phase, loading
from crosscope_worker.publish import Provenance, make_current, manifest_of, publish
from crosscope_worker.sparse import launches_kernels
from crosscope_worker.texts import Split, TextStream
from crosscope_worker.tokens import TextTokenizer
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
    num_skipped: int = 0
    """Texts that were left out of the training."""


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
        """Loads the pair and opens the data. Raises PairError, and DataError, also where a set has no held-out text."""
        on_gpu = torch.device(workspace.device).type == "cuda"
        manifest = resolve_pair(recipe.pair, workspace.home)
        with loading(progress, f"loading the pair {recipe.pair.name}", _size_bytes(manifest)):
            pair = load_pair(manifest, workspace.device, long_rows=on_gpu and launches_kernels())
        activations = PairActivations(pair, recipe.layer)
        material = cls(recipe, workspace, progress, pair, activations, TextTokenizer(pair.tokenizer), {})
        progress("load", 0.9, "looking for the held-out texts")
        material.texts("held_out").check_held_out()
        hashing = Phase(progress, "hash", "hashing the models' files", _size_bytes(manifest), "bytes")
        return replace(material, hashes=pair_hashes(manifest, hashing))

    def texts(self, split: Split) -> TextStream:
        """The recipe's texts of a split, from their beginning, cut to what both models can read.

        Raises DataError if a file is missing.
        """
        home, policy, limit = self.workspace.home, self.recipe.tokens, self.pair.max_positions
        if limit is not None:
            policy = replace(policy, max_length=min(limit, policy.max_length))
        folders = (Path(pair_folder(home, self.recipe.pair.name)), home)
        return TextStream(self.recipe.data, self.tokenizer, policy, folders, split)


def _size_bytes(manifest: PairManifest) -> int:
    """Of everything in the pair's folders; a model of the hub counts nothing."""
    folders = {Path(source) for source in (manifest.base, manifest.chat, manifest.tokenizer)}
    return sum(path.stat().st_size for each in folders if each.is_absolute() for path in each.glob("*"))


def measure_and_publish(material: Material, trained: Trained) -> CrosscoderManifest:
    """Measures a crosscoder on the held-out texts and publishes it.

    Raises DataError, HarvestError, AnalysisError (all ValueError), PublishError (OSError), and what `progress` and
    `workspace.fence` raise.
    """
    recipe, workspace = material.recipe, material.workspace
    held_out = material.texts("held_out")
    try:
        analysis = _measure(material, trained.crosscoder, held_out)
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
        _provenance(material, trained, held_out.num_skipped),
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


def _provenance(material: Material, trained: Trained, num_skipped: int = 0) -> Provenance:
    """`num_skipped`: texts that were left out of the analysis."""
    return Provenance(
        pair=material.pair.manifest,
        layer=material.recipe.layer,
        recipe=recipe_dict(material.recipe),
        training_tokens=trained.tokens,
        skipped_texts=trained.num_skipped + num_skipped,
        job=material.workspace.folder.name,
        hashes=material.hashes,
    )


def _measure(material: Material, crosscoder: Crosscoder, held_out: TextStream) -> Analysis:
    recipe, pair, progress = material.recipe, material.pair, material.progress
    following = Following(progress, "analyse")
    harvests = harvest(held_out, material.activations, recipe.tokens, tick=following.tick)
    names = [data.name for data in recipe.data]
    analysis = analyse(crosscoder, harvests, recipe.analysis, names, material.tokenizer, pair, following)
    spliced, patched = material.texts("held_out"), patched_latents(analysis.latents)
    figures = fidelity(crosscoder, pair, recipe.layer, spliced, patched, recipe.analysis, recipe.tokens, progress)
    return replace(analysis, metrics=analysis.metrics | figures)


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
