"""The job that measures and publishes a crosscoder that someone else trained. Knows no file layout and no formula."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import PublishedRecipe
from crosscope_proto.roots import Roots
from crosscope_proto.stages import Stage
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.measure import Trained, measure_and_publish
from crosscope_worker.recipes.publish import already_published
from crosscope_worker.work import Progress, Workspace

_FILES = ("*.json", "*.yaml", "*.safetensors", "*.pt", "*.pth", "pytorch_model*.bin")


def make_published(recipe: PublishedRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    """Loads a published crosscoder, measures it on held-out texts and publishes it here.

    If this job has already published, returns what it published. Raises CrosscoderError for a crosscoder that is
    missing, cannot be loaded, or does not fit the pair; otherwise as make_crosscoder.
    """
    if (published := already_published(recipe.name, workspace, progress)) is not None:
        return published
    progress(Stage.LOAD, 0.0, f"loading the crosscoder {recipe.path}")
    path = find_weights(recipe, workspace.home, workspace.roots)
    workspace.shelf.need_all(path)

    def tell(message: str) -> None:
        progress(Stage.LOAD, 0.0, message)

    crosscoder = load_crosscoder(path, workspace.device, recipe.input_scale, recipe.swap, recipe.reads, tell)
    for note in crosscoder.notes:
        progress(Stage.LOAD, 0.0, f"note: {note}")
    material = Material.load(recipe, workspace, progress)
    if crosscoder.d_model != material.pair.d_model:
        raise CrosscoderError(
            f"{path} reads models of width {crosscoder.d_model[0]} and {crosscoder.d_model[1]}, but those of the pair "
            f"{recipe.pair.name} have {material.pair.d_model[0]} and {material.pair.d_model[1]}"
        )
    return measure_and_publish(material, Trained(crosscoder))


def find_weights(recipe: PublishedRecipe, home: Path, roots: Roots) -> Path:
    """The folder or file that `recipe.path` names. A hub id, or a hub id with a folder in it, is downloaded.

    Raises CrosscoderError if there is none, or if a local folder or file is given a revision, and RootError if jobs may
    not read it.
    """
    path = roots.check_below(home, recipe.path)
    if path.exists():
        if recipe.revision is not None:
            raise CrosscoderError(f"{path} is on this machine and has no revisions; drop revision")
        return path
    if Path(recipe.path).is_absolute() or recipe.path.startswith("~") or recipe.path.startswith("."):
        raise CrosscoderError(f"there is no crosscoder {path}")
    owner, *names = recipe.path.strip("/").split("/")
    repository, folder = "/".join([owner, *names[:1]]), "/".join(names[1:])
    patterns = [f"{folder}/{pattern}" if folder else pattern for pattern in _FILES]
    try:
        found = Path(snapshot_download(repository, revision=recipe.revision, allow_patterns=patterns)) / folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CrosscoderError(f"there is no {path}, and the hub gave no {repository}: {reason}") from error
    if not found.is_dir():
        raise CrosscoderError(f"there is no {path}, and {repository} at the hub has no folder {folder} with weights")
    return found
