"""The job that makes a crosscoder: harvest and train, analyse, publish. Says in which order; knows no formula.

Everything that it writes lies in the job's folder until one rename publishes it.
"""

from dataclasses import replace
from pathlib import Path

import torch

from crosscope_proto.artefacts import CrosscoderManifest, crosscoder_folder, pair_folder
from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_worker.activations import PairActivations
from crosscope_worker.analysis import analyse
from crosscope_worker.analysis.fidelity import fidelity, patched_latents
from crosscope_worker.crosscoder import CrosscoderError, read_manifest
from crosscope_worker.harvest import harvest
from crosscope_worker.pair import load_pair, pair_hashes, resolve_pair
from crosscope_worker.publish import Provenance, make_current, publish
from crosscope_worker.sources import open_source
from crosscope_worker.sparse import launches_kernels
from crosscope_worker.texts import TextStream
from crosscope_worker.tokens import TextTokenizer
from crosscope_worker.training import train
from crosscope_worker.work import Progress, Workspace


def make_crosscoder(recipe: CrosscoderRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    """Trains a crosscoder by a recipe, measures it on held-out texts and publishes it.

    Goes on from the job's newest checkpoint; if this job has already published, answers with what it published.
    Raises PairError, DataError, CacheError, HarvestError, TrainingError, CheckpointError, AnalysisError (all
    ValueError), CacheFull, PublishError (OSError), and what `progress` and `workspace.fence` raise.
    """
    if (published := find_published(workspace.home, recipe.name, workspace.folder.name)) is not None:
        make_current(workspace.home, published, workspace.fence)
        return published
    progress("load", 0.0, f"loading the pair {recipe.pair.name}")
    on_gpu = torch.device(workspace.device).type == "cuda"
    pair = load_pair(
        resolve_pair(recipe.pair, workspace.home), workspace.device, long_rows=on_gpu and launches_kernels()
    )
    activations = PairActivations(pair, recipe.layer)
    tokenizer = TextTokenizer(pair.tokenizer)
    folders = (Path(pair_folder(workspace.home, recipe.pair.name)), workspace.home)
    progress("load", 0.5, "opening the data sets")
    training = TextStream(recipe.data, tokenizer, recipe.tokens, folders, "train")
    held_out = TextStream(recipe.data, tokenizer, recipe.tokens, folders, "held_out")

    progress("load", 0.7, "hashing the models' files" + (" and the data" if recipe.training.cache else ""))
    hashes = pair_hashes(pair.manifest)

    def tell(message: str) -> None:
        progress("cache", 0.0, message)

    source = open_source(recipe, training, activations, workspace.home, hashes, tell)
    with torch.no_grad():
        trained = train(recipe, source, pair.d_model, workspace.checkpoints, progress, workspace.device)

    analysis = analyse(
        trained.crosscoder,
        harvest(held_out, activations, recipe.tokens),
        recipe.analysis,
        [data.name for data in recipe.data],
        tokenizer,
        pair,
        progress,
    )
    spliced = TextStream(recipe.data, tokenizer, recipe.tokens, folders, "held_out")
    patched = patched_latents(analysis.latents)
    figures = fidelity(
        trained.crosscoder, pair, recipe.layer, spliced, patched, recipe.analysis, recipe.tokens, progress
    )
    analysis = replace(analysis, metrics=analysis.metrics | figures)
    progress("publish", 0.0, "writing the version")
    return publish(
        workspace.home,
        recipe.name,
        trained.crosscoder,
        Provenance(
            pair=pair.manifest,
            layer=recipe.layer,
            recipe=recipe_dict(recipe),
            training_tokens=trained.tokens,
            skipped_texts=training.num_skipped + held_out.num_skipped,
            job=workspace.folder.name,
            hashes=hashes,
        ),
        analysis,
        trained.curves,
        workspace.fence,
    )


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
