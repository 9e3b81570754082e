"""The environment of a job's process: clean, and with what must be set before torch is imported.

Reads which folders exist, to tell a hub id from a folder. Knows nothing about Redis.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from crosscope_proto import environment
from crosscope_proto.artefacts import PAIR_MANIFEST, pair_folder
from crosscope_proto.manifest import ManifestError, parse_pair_manifest
from crosscope_proto.recipe import DemoPairRecipe, PublishedRecipe, Recipe, RecipeError, parse_recipe, recipe_dict
from crosscope_worker.jobs.settings import JobSettings

_IDLE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Threads that wait give their core away instead of spinning: where neighbours want it too, spinning makes every
operation wait for theirs. Changes no result."""
_NOT_SOURCES = ("name", "dtype", "revision_base", "revision_chat")
"""Fields of a recipe's pair that are no folder and no hub id."""


def job_environment(given: Mapping[str, str], settings: JobSettings, recipe: str) -> dict[str, str]:
    """What the process of a job with this `recipe` (YAML) gets of the job worker's environment `given`.

    Tokens of the hub, and proxies, only where the recipe names something that does not lie here.
    """
    groups = [environment.COMPUTE, environment.HUB]
    if uses_hub(recipe, settings.home):
        groups.append(environment.HUB_ACCESS)
    made = _IDLE | environment.needed(given, *groups) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if settings.job_threads is not None:
        made |= {name: str(settings.job_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return made


def uses_hub(text: str, home: Path) -> bool:
    """Whether a recipe (YAML) reads from the hub; of one that cannot be parsed, no."""
    try:
        recipe = parse_recipe(text)
    except RecipeError:
        return False
    if isinstance(recipe, DemoPairRecipe):
        return False
    if any(data.source == "hub" for data in recipe.data):
        return True
    sources = list(_sources(recipe, home))
    if isinstance(recipe, PublishedRecipe):
        sources.append((recipe.path, home))
    return any(not (folder / Path(source).expanduser()).exists() for source, folder in sources)


def _sources(recipe: Recipe, home: Path) -> Iterator[tuple[str, Path]]:
    """What a recipe's pair is made of, each with the folder where a relative one is looked up."""
    folder = Path(pair_folder(home, recipe_dict(recipe)["pair"]["name"]))  # pyright: ignore[reportIndexIssue]
    yield from ((source, home) for source in _strings(recipe_dict(recipe)["pair"]))
    try:
        manifest = parse_pair_manifest((folder / PAIR_MANIFEST).read_bytes())
    except (OSError, ManifestError):
        return
    sources = (manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)
    yield from ((source, folder) for source in sources if source is not None)


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, but for the fields that are no source."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NOT_SOURCES:
                yield from _strings(item)
