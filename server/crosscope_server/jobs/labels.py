"""What a recipe of kind label takes at most, and what is wrong with it. Asks no endpoint and reads no example."""

from collections.abc import Iterator
from pathlib import Path

from crosscope_proto.artefacts import CURRENT, MANIFEST, crosscoder_folder, version_folder
from crosscope_proto.label_specs import Cost, most_per_latent
from crosscope_proto.manifest import ManifestError, parse_manifest
from crosscope_proto.recipe import LabelRecipe


def most(recipe: LabelRecipe) -> tuple[int, Cost]:
    """How many latents are labelled at most, and what they take, without repeated requests."""
    num_latents = len(recipe.latents.ids) or recipe.latents.limit
    each = most_per_latent(recipe.explainer, recipe.examples)
    return num_latents, Cost(*(num_latents * value for value in vars(each).values()))


def wrong_fields(recipe: LabelRecipe, home: Path) -> Iterator[tuple[str, str]]:
    """Fields that do not fit the crosscoder, which is published, each with a sentence. Raises OSError."""
    folder = Path(crosscoder_folder(home, recipe.name))
    version_id = recipe.version or (folder / CURRENT).read_text("utf-8").strip()
    path = Path(version_folder(home, recipe.name, version_id)) / MANIFEST
    if not path.is_file():
        there = ", ".join(sorted(each.parent.name for each in folder.glob(f"versions/*/{MANIFEST}"))[:20]) or "none"
        yield "version", f"there is no version {version_id!r} of {recipe.name!r} (there: {there})"
        return
    try:
        num_latents = parse_manifest(path.read_bytes()).num_latents
    except ManifestError as error:
        yield "name", f"{path}: {error}"
        return
    if recipe.latents.ids and (last := max(recipe.latents.ids)) >= num_latents:
        yield "latents.ids", f"there is no latent {last}: {recipe.name!r} has {num_latents}, 0 to {num_latents - 1}"


def over_budget(recipe: LabelRecipe) -> Iterator[str]:
    """Sentences where the job may need more than its budget; it counts exactly, and asks nothing then."""
    num_latents, cost = most(recipe)
    for name, needed, limit in (
        ("requests", cost.requests, recipe.budget.requests),
        ("tokens", cost.tokens, recipe.budget.tokens),
    ):
        if needed > limit:
            yield (
                f"budget.{name} {limit}: labelling {num_latents} latents takes up to {needed} {name}; the job counts "
                "exactly before it asks, and ends if that is too much"
            )
