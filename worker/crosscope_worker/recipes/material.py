"""The loading and trying of a recipe's pair and data: the first step of every job with a crosscoder.

Knows no formula.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from crosscope_proto.artefacts import PairManifest, pair_folder
from crosscope_proto.recipe import CrosscoderRecipe, LookRecipe, PublishedRecipe, recipe_dict
from crosscope_proto.roles import MODEL_NAMES
from crosscope_proto.specs import Float32, TokenPolicy
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.fidelity import spliced_half
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.data.texts import Split, TextStream, open_rows
from crosscope_worker.dictionary.sparse import launches_kernels
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import pair_hashes
from crosscope_worker.models.pair import Pair, load_pair
from crosscope_worker.models.places import resolve_pair
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, TOLERANCE, moved_by_tf32
from crosscope_worker.phases import Phase, loading
from crosscope_worker.precision import float32_on, float32_products
from crosscope_worker.roots import check_pair_folders
from crosscope_worker.tokenizer.tokens import TemplateSettings, TextTokenizer
from crosscope_worker.work import Progress, Workspace

AnalysedRecipe = CrosscoderRecipe | PublishedRecipe
ReadingRecipe = AnalysedRecipe | LookRecipe
"""Recipes with a pair and data."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """The pair and the data of a recipe, loaded."""

    recipe: AnalysedRecipe
    workspace: Workspace
    progress: Progress
    pair: Pair
    activations: PairActivations
    tokenizer: TextTokenizer
    hashes: dict[str, str]
    """`pair_hashes` of the pair; empty if it was loaded without."""

    @classmethod
    def load(cls, recipe: AnalysedRecipe, workspace: Workspace, progress: Progress, *, hashed: bool = True) -> Self:
        """Loads the pair and opens the data; hashes the pair's files unless nobody asks for the hashes.

        Raises what load_models raises, AnalysisError for a model with which `analysis.spliced_tokens` is impossible,
        and DataError for a data set without held-out texts.
        """
        pair = load_models(recipe, workspace, progress)
        activations = PairActivations(pair, recipe.layer)
        progress(Stage.LOAD, 0.92, "trying both models on a few tokens")
        for message in _try_models(activations, recipe):
            progress(Stage.LOAD, 0.94, message)
        tokenizer = load_tokenizer(recipe, pair, workspace)
        material = cls(recipe, workspace, progress, pair, activations, tokenizer, {})
        progress(Stage.LOAD, 0.96, "looking for the held-out texts")
        material.texts("held_out").check_held_out()
        return replace(material, hashes=hash_models(pair, progress)) if hashed else material

    @cached_property
    def float32(self) -> Float32:
        """How float32 products are made on the job's device: as IEEE says, whatever is asked, where TF32 moves a model.

        A setting of torch holds for the whole process, so the dictionary's products cannot be TF32 without the models'.
        """
        how = float32_on(self.workspace.device, self.recipe.float32)
        if how == "ieee":
            return how
        for name, model in zip(MODEL_NAMES, self.pair.models, strict=True):
            moved = moved_by_tf32(model, self.recipe.layer)
            if moved > (ROUNDED_TOLERANCE if model.dtype == torch.float32 else TOLERANCE):
                log.warning(
                    "float32 products are IEEE's: TF32 moves activations of the %s model by %.2g of their spread",
                    name, moved,
                )  # fmt: skip
                return "ieee"
        return how

    def try_long_rows(self) -> None:
        """Tries whether models are read in long rows, and says what came of it: before training, for layers compile."""
        if self.pair.long_rows:
            self.progress(Stage.LOAD, 0.97, "trying rows of many texts, for which decoder layers are compiled")
            with float32_products(self.float32):
                self.activations.packs_rows(TOKENS_PER_FORWARD)
            self.progress(Stage.LOAD, 0.99, self.activations.about_rows(TOKENS_PER_FORWARD))

    def texts(self, split: Split, part: Part = WHOLE) -> TextStream:
        """The recipe's texts of a split, from their beginning, cut to the length that both models can read.

        Raises DataError if a file is missing.
        """
        return open_texts(
            self.recipe, self.recipe.tokens, self.pair, self.tokenizer, split, self.workspace, self.progress, part
        )


def load_models(recipe: ReadingRecipe, workspace: Workspace, progress: Progress) -> Pair:
    """The pair of a recipe, loaded; missing or unreadable data is reported before that, which takes minutes.

    Raises PairError, RootError for a pair that jobs may not read, and DataError.
    """
    progress(Stage.LOAD, 0.0, f"looking for the pair {recipe.pair.name} and the data")
    workspace.shelf.need_all(Path(pair_folder(workspace.home, recipe.pair.name)))
    check_pair_folders(resolve_pair(recipe.pair, workspace.home), workspace.roots)
    for spec in recipe.data:
        open_rows(spec, _folders(recipe, workspace), workspace.roots)
    return load_both(recipe, workspace, progress)


def load_both(recipe: ReadingRecipe, workspace: Workspace, progress: Progress) -> Pair:
    """The pair of a recipe, loaded. Raises PairError, and RootError for a pair that jobs may not read."""
    on_gpu = torch.device(workspace.device).type == "cuda"
    manifest = resolve_pair(recipe.pair, workspace.home)
    check_pair_folders(manifest, workspace.roots)
    with loading(progress, f"loading the pair {recipe.pair.name}", _size_bytes(manifest)):
        return load_pair(manifest, workspace.device, long_rows=on_gpu and launches_kernels())


def load_tokenizer(recipe: ReadingRecipe, pair: Pair, workspace: Workspace) -> TextTokenizer:
    """The pair's tokenizer with the template's settings and the day of a recipe."""
    day = recipe.chat_template_date.isoformat() if recipe.chat_template_date else workspace.first_day()
    return TextTokenizer(pair.tokenizer, TemplateSettings.of_recipe(recipe_dict(recipe), day))


def hash_models(pair: Pair, progress: Progress) -> dict[str, str]:
    """`pair_hashes` of a pair, with progress."""
    size_bytes = _size_bytes(pair.manifest)
    return pair_hashes(pair.manifest, Phase(progress, Stage.HASH, "hashing the models' files", size_bytes, "bytes"))


def open_texts(
    recipe: ReadingRecipe,
    policy: TokenPolicy,
    pair: Pair,
    tokenizer: TextTokenizer,
    split: Split,
    workspace: Workspace,
    progress: Progress,
    part: Part = WHOLE,
) -> TextStream:
    """A recipe's texts of a split, from their beginning, cut to the length that both models can read.

    Raises DataError if a file is missing.
    """
    if (limit := pair.max_positions) is not None:
        policy = replace(policy, max_length=min(limit, policy.max_length))

    def tell(message: str) -> None:
        progress("read", 0.0, message)

    return TextStream(recipe.data, tokenizer, policy, _folders(recipe, workspace), split, workspace.roots, tell, part)


def _folders(recipe: ReadingRecipe, workspace: Workspace) -> list[Path]:
    """Folders in which relative paths of data are looked up, in this order."""
    folders = [Path(pair_folder(workspace.home, recipe.pair.name)), workspace.home]
    return folders if workspace.submitted_from is None else [*folders, workspace.submitted_from]


def _try_models(activations: PairActivations, recipe: AnalysedRecipe) -> list[str]:
    """Notes about the models that users must know before the training, one sentence each.

    Raises PairError or AnalysisError if a model cannot be read or measured.
    """
    activations.check()
    if recipe.analysis.spliced_tokens or recipe.analysis.causal:
        for model in activations.pair.models:
            spliced_half(model, recipe.layer)
    _, reasons = find_lenses(activations.pair)
    differences = activations.pair.manifest.token_differences
    told = [f"no logit lens: {reason}" for reason in reasons.values()]
    if differences:
        told.append(f"the tokenizers have different names for {len(differences)} tokens; the first: {differences[0]}")
    return told


def _size_bytes(manifest: PairManifest) -> int:
    """Size of all files in the pair's folders, in bytes; a model of the hub counts nothing."""
    places = (manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)
    folders = {Path(place) for place in places if place is not None}
    return sum(path.stat().st_size for each in folders if each.is_absolute() for path in each.glob("*"))
